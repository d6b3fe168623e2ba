"""Peers are the published architectures, and write as many tokens as they are told, each decoded on its own."""

import sys

import pytest
import torch

from fastcap.build import ConfigError
from fastcap.tools.captioners import write_photographs
from fastcap.tools.peers import ARCHITECTURES, Peer, build_peer
from tests.tools.shrunk import SHRUNK

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("images"), count=1)[0]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exactly_twelve_tokens_from_one_look_at_the_image(name, num_beams, photograph):
    model = build_peer(name, SHRUNK[name])
    peer = Peer(name, 32, num_beams, model=model)
    looks, passes = [], []
    parts = dict(model.named_modules())
    vision = next(parts[key] for key in ("vision_model", "git.image_encoder", "encoder") if key in parts)
    text = next(parts[key] for key in ("text_decoder.bert", "git.encoder", "decoder.transformer") if key in parts)
    vision.register_forward_hook(lambda *_: looks.append(1))
    text.register_forward_hook(lambda *_: passes.append(1))
    tokens = peer.generate(photograph)
    assert tokens.shape == (12,) and len(looks) == 1 and len(passes) == 12
    stops = {model.generation_config.eos_token_id, 102 if name == "git-base" else 2 if name == "blip-base" else 3}
    assert not stops & set(tokens.tolist())
    assert len(peer.caption(photograph).split()) == 12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    with torch.device("meta"):
        model = build_peer(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(ARCHITECTURES[name].parameters, rel=1e-3)


def test_bytes_of_the_file_count_shared_tensors_once():
    peer = Peer("vit-gpt2", 32, model=build_peer("vit-gpt2", SHRUNK["vit-gpt2"]))
    assert peer.file_bytes == pytest.approx(4 * peer.parameters, rel=0.05)
    whole = sum(tensor.nbytes for tensor in peer.model.state_dict().values())
    assert peer.file_bytes <= whole - 200 * 32 * 4  # the word table is also the head


def test_another_image_size_than_the_own(photograph):
    peer = Peer("blip-base", 64, model=build_peer("blip-base", SHRUNK["blip-base"]))
    assert peer.generate(photograph).shape == (12,)


def test_wrong_peers_are_named(monkeypatch):
    with pytest.raises(ConfigError, match="no peer 'clip'; choose from blip-base, git-base, vit-gpt2"):
        build_peer("clip")
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(ConfigError, match=r"peers need transformers: pip install .*\[baselines\]"):
        build_peer("git-base")
