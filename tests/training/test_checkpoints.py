"""What a new model starts from, and what a checkpoint brings."""

import pytest
import torch

from fastcap.build import ConfigError, build_datamodule, build_module, load_checkpoint, resumed_model
from fastcap.data.datamodule import CaptionDataModule
from fastcap.training.checkpoints import CheckpointError
from fastcap.training.resume import settle_resume
from tests.tiny import tiny_config
from tests.tiny_captioner import write_checkpoint


def saved(path):
    checkpoint = torch.load(path, weights_only=True)
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}


def started_from(path):
    cfg = tiny_config(f"init.captioner={path}")
    return build_module(cfg, build_datamodule(cfg)).model


def test_a_start_takes_all_that_fits(tmp_path):
    path = write_checkpoint(tmp_path / "start.ckpt")
    model = started_from(path).state_dict()
    assert all(torch.equal(model[name], value) for name, value in saved(path).items())


def test_a_start_brings_its_vocabulary_concepts_and_ngrams(tmp_path):
    path = write_checkpoint(
        tmp_path / "other.ckpt", "data.source.seed=5", "tokenizer.min_frequency=9", "concepts.min_phrase_count=2"
    )
    cfg = tiny_config(f"init.captioner={path}")
    datamodule = build_datamodule(cfg)
    assert datamodule.tokenizer.vocab_size < build_datamodule(tiny_config()).tokenizer.vocab_size
    model = build_module(cfg, datamodule).model.state_dict()
    assert model["alignment.concepts.phrases"].numel() and model["ngrams.bigrams"].numel() > 1
    assert all(torch.equal(model[name], value) for name, value in saved(path).items())


def test_a_run_with_a_start_is_resumed_whatever_its_data(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    path = write_checkpoint(tmp_path / "checkpoints/last.ckpt", "data.source.seed=5", "concepts.min_phrase_count=2")
    written = torch.load(path, weights_only=True)
    written["fastcap"]["config"]["init"]["captioner"] = "gone.ckpt"
    torch.save(written, path)
    reads = []
    monkeypatch.setattr(torch, "load", lambda *a, load=torch.load, **k: reads.append(a) or load(*a, **k))
    monkeypatch.setattr(CaptionDataModule, "reference_tokens", None)  # nothing is collected from the captions
    cfg, resumed = settle_resume(
        tiny_config("init.captioner=gone.ckpt", "concepts.min_phrase_count=2", "resume=last"), tmp_path
    )
    datamodule = build_datamodule(cfg, opened=resumed)
    model = resumed_model(cfg, datamodule.tokenizer, resumed)
    model = build_module(cfg, datamodule, model).model.state_dict()
    assert len(reads) == 1
    assert all(torch.equal(model[name], value) for name, value in saved(path).items())


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["teacher_from_moe", "moe_from_teacher"])
def test_the_two_decoders_start_each_other(order, tmp_path):
    first, then = [["decoder=autoregressive_mini", "refinement=greedy"], []][order][::-1]
    path = write_checkpoint(tmp_path / "start.ckpt", *first)
    cfg = tiny_config(f"init.captioner={path}", *then)
    model = build_module(cfg, build_datamodule(cfg)).model.state_dict()
    other = {name for name, value in saved(path).items() if name not in model or not torch.equal(model[name], value)}
    assert other and all(name.startswith("decoder.from_") for name in other)


def test_a_start_of_another_size_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "start.ckpt")
    cfg = tiny_config(f"init.captioner={path}", "decoder.dim=16")
    with pytest.raises(CheckpointError, match=r"start\.ckpt: field `state_dict\.model\.\S+` is \(.*, the new"):
        build_module(cfg, build_datamodule(cfg))


@pytest.mark.parametrize(
    ("name", "untrained"),
    [
        ("rerank_weight", ["loss_weight=0"]),
        ("word_bias", ["loss_weight=0"]),
        ("bigram_bias", ["min_phrase_count=0"]),
        ("bigram_bias", ["min_phrase_count=2", "phrase_loss_weight=0"]),
    ],
)
def test_concepts_that_were_not_trained_guide_nothing(name, untrained, tmp_path):
    given = [f"concepts.{value}" for value in untrained]
    cfg = tiny_config(*given, f"refinement.guidance.{name}=2")
    with pytest.raises(ConfigError, match=rf"refinement\.guidance\.{name} = 2: concepts\.{untrained[-1]}"):
        build_module(cfg, build_datamodule(cfg))


def test_a_checkpoints_guidance_is_checked_too(tmp_path):
    path = write_checkpoint(tmp_path / "untrained.ckpt", "concepts.loss_weight=0")
    with pytest.raises(ConfigError, match=r"word_bias = 1\.5: concepts\.loss_weight=0 trains none"):
        load_checkpoint(path, {"refinement.guidance.word_bias": 1.5})


def test_checkpoints_bring_their_phrases_and_others_change_none(tmp_path):
    with_phrases = write_checkpoint(tmp_path / "with.ckpt", "concepts.min_phrase_count=2")
    without = write_checkpoint(tmp_path / "without.ckpt")
    found = load_checkpoint(with_phrases).model.alignment.concepts
    assert len(found.phrases) > 0 and not load_checkpoint(without).model.alignment.concepts.phrases.numel()
    assert len(found.weights) == found.num_concepts + len(found.phrases) == found.memory_head.out_features


def test_a_checkpoint_loads_within_inference_mode(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.ckpt")
    with torch.inference_mode():
        model = load_checkpoint(path).model
    assert not any(parameter.is_inference() for parameter in model.parameters())
