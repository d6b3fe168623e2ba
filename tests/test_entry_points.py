"""The commands as a user meets them: what they print, and one clear error for each mistake."""

import json
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastcap import caption as caption_command
from fastcap.build import ConfigError, load_checkpoint
from fastcap.cli import UserError
from fastcap.eval import checkpoint_overrides
from fastcap.train import main as train_command
from fastcap.train import train
from fastcap.training.checkpoints import CheckpointError, find_checkpoint
from tests.tiny import QUICK, tiny_config
from tests.tiny_captioner import write_checkpoint
from tests.training.command import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 60), "red").save(folder / "a.jpg")
    Image.new("L", (30, 90), 128).save(folder / "b.png")
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_caption_prints_captions_and_passes_over_broken_images(checkpoint, photos, capsys):
    with pytest.raises(SystemExit) as stop:
        caption_command.main([str(photos), "--ckpt", str(checkpoint), "--json", "--steps", "--num-steps", "3"])
    assert stop.value.code == 1
    rows = {Path(row["file"]).name: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {"a.jpg", "b.png", "c.jpg"}
    assert "c.jpg" in rows["c.jpg"]["error"] and "caption" not in rows["c.jpg"]
    for name in ("a.jpg", "b.png"):
        row = rows[name]
        assert row["caption"] and 0 < row["confidence"] <= 1
        assert 1 <= len(row["steps"]) <= 3
        shown = [word for word, _ in groupby(row["steps"][-1]["words"])]  # a word that follows itself is shown once
        assert " ".join(shown) == row["caption"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg"], "missing.jpg: no such file"),
        (["."], "no image in this folder"),
        (["--batch-size", "0", "a.jpg"], "--batch-size"),
    ],
)
def test_caption_names_the_mistake(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        caption_command.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("fastcap: error: ") and message in error and error.count("\n") == 1


def test_no_checkpoint_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="train first"):
        find_checkpoint(None)


def test_wrong_checkpoints_are_named(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere.ckpt")
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"truncated\.ckpt: cannot be read"):
        load_checkpoint(truncated)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(CheckpointError, match="field `fastcap`"):
        load_checkpoint(foreign)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"fastcap": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt"):
        load_checkpoint(tmp_path / "evil.ckpt")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.optimizer.lr=1e-5", r"optim\.optimizer\.lr: 0\.002, now 1e-05"),
        ("decoder=dense", r"decoder\.dim: 32, now 256|decoder\.\w+: .* and \d+ more"),
        ("tokenizer.min_frequency=40", r"tokenizer\.min_frequency: 1, now 40"),
        ("data.max_length=10", r"data\.max_length: 20, now 10"),
    ],
)
def test_resuming_with_what_the_checkpoint_fixes_is_refused(checkpoint, tmp_path, override, named):
    with pytest.raises(CheckpointError, match=rf"resume cannot change ({named}).*init\.captioner="):
        train(tiny_config(f"resume={checkpoint}", override), tmp_path)


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(ConfigError, match="metrics: names must be some of"):
        train(tiny_config("metrics.names=[nonsense]"), tmp_path)


def test_resuming_with_another_vocabulary_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="another vocabulary"):
        train(tiny_config(f"resume={checkpoint}", "data.source.seed=5"), tmp_path)


def test_eval_overrides_are_sorted_out():
    assert checkpoint_overrides(["ckpt=x", "split=val", "++refinement.num_steps=8"]) == {"refinement.num_steps": 8}
    for key in ("decoder.dim", "data.max_length"):
        with pytest.raises(UserError, match=rf"{key}.*settled by the checkpoint"):
            checkpoint_overrides([f"++{key}=8"])


def test_an_unknown_eval_key_is_named(checkpoint):
    with pytest.raises(ConfigError, match=r"num_stepz.*num_steps"):
        load_checkpoint(checkpoint, {"refinement.num_stepz": 3})


def test_train_then_eval_as_processes(tmp_path):
    """The whole path through Hydra, from another working folder; then a multirun of eval over steps."""
    status, output = run(tmp_path, "train", *QUICK, "trainer.max_epochs=1")
    assert status == 0 and "Next" in output, output[-2000:]
    status, output = run(tmp_path, "eval", "-m", "refinement.num_steps=1,2")
    assert status == 0, output[-2000:]
    assert len(list(tmp_path.glob("runs/eval-sweep/*/*/results.json"))) == 2


def test_bad_data_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "data=coco", "data.source.root=nowhere", "logger=csv"])
    with pytest.raises(SystemExit) as stop:
        train_command()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "fastcap: error:" in error and "nowhere" in error and "Traceback" not in error
