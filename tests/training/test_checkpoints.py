"""What a new model starts from: one checkpoint, or the mean of several."""

import pytest
import torch

from fastcap.build import ConfigError, build_datamodule, build_module, load_checkpoint
from fastcap.training.checkpoints import CheckpointError, average
from tests.tiny import tiny_config
from tests.tiny_captioner import write_checkpoint


def saved(path):
    checkpoint = torch.load(path, weights_only=True)
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()}


def shifted(path, new, by):
    """Copy a checkpoint, all its floating-point tensors moved."""
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v + by if v.is_floating_point() else v for k, v in state.items()}
    torch.save(checkpoint, new)
    return new


def started_from(*paths):
    cfg = tiny_config(f"init.captioner=[{','.join(map(str, paths))}]")
    return build_module(cfg, build_datamodule(cfg)).model


def test_several_checkpoints_are_averaged(tmp_path):
    first = write_checkpoint(tmp_path / "first.ckpt")
    second = shifted(first, tmp_path / "second.ckpt", 1.0)
    third = shifted(first, tmp_path / "third.ckpt", -4.0)
    model, start = started_from(first, second, third).state_dict(), saved(first)
    assert start.keys() <= model.keys()
    for name, value in start.items():
        if name.startswith(("decoder.bigrams.", "decoder.trigrams.")):
            continue  # counted in the training captions of each run
        expected = value - 1.0 if value.is_floating_point() else value
        torch.testing.assert_close(model[name], expected, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_one_of_a_list_is_taken_as_it_is(tmp_path):
    only = write_checkpoint(tmp_path / "only.ckpt")
    model = started_from(only).state_dict()
    assert all(torch.equal(model[name], value) for name, value in saved(only).items())


def test_counts_are_the_first_ones_and_halves_stay_halves():
    states = [{"n": torch.tensor(2), "w": torch.ones(2).half()}, {"n": torch.tensor(5), "w": torch.zeros(2).half()}]
    mean = average(["a", "b"], states)
    assert mean["n"] == 2 and mean["w"].tolist() == [0.5, 0.5] and mean["w"].dtype == torch.float16


@pytest.mark.parametrize("other", [{"w": torch.ones(3)}, {}, {"w": torch.ones(2), "x": torch.ones(1)}])
def test_what_does_not_fit_is_named(other):
    with pytest.raises(CheckpointError, match=r"b\.ckpt: field `state_dict\.model\.[wx]` is not as in a\.ckpt"):
        average(["a.ckpt", "b.ckpt"], [{"w": torch.ones(2)}, other])


def test_an_empty_list_is_no_start():
    with pytest.raises(CheckpointError, match="names no checkpoint"):
        average([], [])


def test_a_vocabulary_of_its_own_is_refused_wherever_it_stands(tmp_path):
    first = write_checkpoint(tmp_path / "first.ckpt")
    other = write_checkpoint(tmp_path / "other.ckpt", "data.source.seed=5", "tokenizer.min_frequency=9")
    with pytest.raises(CheckpointError, match=r"other\.ckpt: field `fastcap\.tokenizer` is another vocabulary"):
        started_from(first, other)


@pytest.mark.parametrize("name", ["naming_weight", "concept_weight"])
def test_concepts_that_were_not_trained_have_no_say(name, tmp_path):
    cfg = tiny_config("objective.concept_weight=0", f"refinement.{name}=2")
    with pytest.raises(ConfigError, match=rf"refinement\.{name} = 2 asks for the image's concepts"):
        build_module(cfg, build_datamodule(cfg))
    path = write_checkpoint(tmp_path / "untrained.ckpt", "objective.concept_weight=0")
    with pytest.raises(ConfigError, match=rf"refinement\.{name} = 1\.5 asks for the image's concepts"):
        load_checkpoint(path, {f"refinement.{name}": 1.5})


def test_phrases_that_were_not_trained_have_no_say(tmp_path):
    weighed = "refinement.phrase_weight=2"
    for more, message in (
        ([], r"of which data\.phrase_mentions=0 has none"),
        (["data.phrase_mentions=2", "objective.phrase_weight=0"], r"which objective\.phrase_weight=0 does not train"),
    ):
        cfg = tiny_config(weighed, *more)
        with pytest.raises(ConfigError, match=rf"phrase_weight = 2 asks for the image's phrases, {message}"):
            build_module(cfg, build_datamodule(cfg))
    cfg = tiny_config("data.phrase_mentions=2", "objective.phrase_weight=0", "refinement.naming_weight=1")
    assert not build_module(cfg, build_datamodule(cfg)).model.alignment.phrases.numel()
    path = write_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(ConfigError, match=r"phrase_weight = 2 asks for the image's phrases, of which data\.phrase"):
        load_checkpoint(path, {"refinement.phrase_weight": 2})


def test_a_judge_that_was_not_trained_has_no_say():
    for name in ("naming_weight", "concept_weight", "phrase_weight"):
        given = "alignment.judge_dim=8", "objective.judge_weight=0", "data.phrase_mentions=2", f"refinement.{name}=1"
        cfg = tiny_config(*given)
        with pytest.raises(ConfigError, match=rf"refinement\.{name} = 1 .* which objective\.judge_weight=0 does not"):
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
