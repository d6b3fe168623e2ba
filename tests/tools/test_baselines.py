"""Baselines are the published architectures, and write as many tokens as they are told."""

import sys

import pytest
import torch

from fastcap.cli import missing_extra
from fastcap.tools.baselines import ARCHITECTURES, Baseline, build_baseline
from fastcap.tools.captioners import draw_photographs
from fastcap.utils.errors import UserError
from tests.tools.shrunk import SHRUNK

pytestmark = pytest.mark.slow
pytest.importorskip("transformers")
PUBLISHED = {
    "blip-base": 224.0e6,
    "git-base": 176.6e6,
    "vit-gpt2": 239.2e6,
    "florence-2-base": 231.4e6,
    "smolvlm-256m": 256.5e6,
}


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    return draw_photographs(tmp_path_factory.mktemp("images"), count=1)[0]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("name", SHRUNK)
def test_exactly_twelve_tokens_from_one_look_at_the_image(name, num_beams, photograph):
    model = build_baseline(name, SHRUNK[name])
    baseline = Baseline(name, 32, num_beams, model=model)
    looks = []
    parts = dict(model.named_modules())
    known = ("vision_model", "git.image_encoder", "encoder")
    next(parts[key] for key in known if key in parts).register_forward_hook(lambda *_: looks.append(1))
    tokens = baseline.generate(photograph)
    assert tokens.shape == (12,) and len(looks) == 1
    assert baseline.file_bytes == pytest.approx(4 * baseline.parameters, rel=0.05), "shared tensors count once"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    with torch.device("meta"):
        model = build_baseline(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_wrong_baselines_are_named(monkeypatch):
    with pytest.raises(UserError, match="no baseline 'clip'; choose from blip-base, git-base, vit-gpt2"):
        build_baseline("clip")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError) as error:
        build_baseline("git-base")
    assert "transformers is missing: pip install 'fastcap[baselines]'" in (missing_extra(error.value) or "")
