"""What a new model starts from, and what a checkpoint brings."""

import pytest
import torch

from fastcap.build import ConfigError, build_datamodule, build_module, load_checkpoint
from fastcap.training.checkpoints import CheckpointError
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


def test_a_vocabulary_of_its_own_is_refused(tmp_path):
    other = write_checkpoint(tmp_path / "other.ckpt", "data.source.seed=5", "tokenizer.min_frequency=9")
    with pytest.raises(CheckpointError, match=r"other\.ckpt: field `fastcap\.tokenizer` is another vocabulary"):
        started_from(other)


@pytest.mark.parametrize("name", ["rerank_weight", "word_bias"])
def test_concepts_that_were_not_trained_have_no_say(name, tmp_path):
    cfg = tiny_config("objective.concept_weight=0", f"refinement.guidance.{name}=2")
    with pytest.raises(ConfigError, match=rf"guidance\.{name} = 2 asks for the image's concepts"):
        build_module(cfg, build_datamodule(cfg))
    path = write_checkpoint(tmp_path / "untrained.ckpt", "objective.concept_weight=0")
    with pytest.raises(ConfigError, match=rf"guidance\.{name} = 1\.5 asks for the image's concepts"):
        load_checkpoint(path, {f"refinement.guidance.{name}": 1.5})


def test_phrases_that_were_not_trained_have_no_say(tmp_path):
    weighed = "refinement.guidance.bigram_bias=2"
    for more, message in (
        ([], r"of which data\.phrase_mentions=0 has none"),
        (["data.phrase_mentions=2", "objective.phrase_weight=0"], r"which objective\.phrase_weight=0 does not train"),
    ):
        cfg = tiny_config(weighed, *more)
        with pytest.raises(ConfigError, match=rf"bigram_bias = 2 asks for the image's phrases, {message}"):
            build_module(cfg, build_datamodule(cfg))
    cfg = tiny_config("data.phrase_mentions=2", "objective.phrase_weight=0", "refinement.guidance.rerank_weight=1")
    assert not build_module(cfg, build_datamodule(cfg)).model.alignment.phrases.numel()
    path = write_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(ConfigError, match=r"bigram_bias = 2 asks for the image's phrases, of which data\.phrase"):
        load_checkpoint(path, {"refinement.guidance.bigram_bias": 2})


def test_a_judge_that_was_not_trained_has_no_say():
    for name in ("rerank_weight", "word_bias", "bigram_bias"):
        given = (
            "alignment.judge_dim=8",
            "objective.judge_weight=0",
            "data.phrase_mentions=2",
            f"refinement.guidance.{name}=1",
        )
        cfg = tiny_config(*given)
        with pytest.raises(ConfigError, match=rf"guidance\.{name} = 1 .* which objective\.judge_weight=0 does not"):
            build_module(cfg, build_datamodule(cfg))


def test_checkpoints_bring_their_phrases_and_others_change_none(tmp_path):
    with_phrases = write_checkpoint(tmp_path / "with.ckpt", "data.phrase_mentions=2")
    without = write_checkpoint(tmp_path / "without.ckpt")
    found = load_checkpoint(with_phrases).model.alignment
    assert len(found.phrases) > 0 and not load_checkpoint(without).model.alignment.phrases.numel()
    assert len(found.concept_weights) == found.num_concepts + len(found.phrases) == found.concept_head.out_features
    cfg = tiny_config("data.phrase_mentions=2")
    for start in (with_phrases, without):
        cfg.init.captioner = str(start)
        alignment = build_module(cfg, build_datamodule(cfg)).model.alignment
        assert torch.equal(alignment.phrases, found.phrases)
        assert torch.equal(alignment.concept_head.weight, found.concept_head.weight) == (start == with_phrases)


def test_a_checkpoint_loads_within_inference_mode(tmp_path):
    path = write_checkpoint(tmp_path / "tiny.ckpt")
    with torch.inference_mode():
        model = load_checkpoint(path).model
    assert not any(parameter.is_inference() for parameter in model.parameters())
