"""Checkpoint files, the rows of a run, and what is found again."""

import csv
import os

import fsspec
import pytest
import torch

from fastcap.build import run_folder
from fastcap.training import checkpoints
from fastcap.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    find_checkpoint,
    last_good,
    open_checkpoint,
)
from fastcap.training.loggers import RunInfo, csv_logger, read_rows
from fastcap.training.resume import FolderInUseError, only_writer, settle_resume, unfinished_run
from tests.tiny import tiny_config

WRITER = AtomicCheckpointIO()


def save(path, step):
    WRITER.save_checkpoint({"global_step": step, "w": torch.full((1000,), float(step))}, path)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints/last.ckpt"
    save(path, 1)

    def half(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: .*\(No space left on device\)"):
        save(path, 2)
    monkeypatch.undo()
    assert open_checkpoint(path)["global_step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_the_one_before_is_kept_and_gone_back_to(tmp_path, caplog):
    for step in (1, 2, 3):
        save(tmp_path / "last.ckpt", step)
    assert last_good(tmp_path)[0] == str(tmp_path / "last.ckpt")
    assert open_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 2
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:2000])
    assert last_good(tmp_path)[0] == str(tmp_path / "previous.ckpt")
    assert "last.ckpt: cannot be read" in caplog.text and "older" in caplog.text
    assert last_good(tmp_path / "nothing") is None
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints"):
        last_good(tmp_path)


def test_checkpoints_at_a_url():
    for step in (1, 2):
        save("memory://bucket/run/last.ckpt", step)
    assert last_good("memory://bucket/run")[0] == "memory://bucket/run/last.ckpt"
    assert WRITER.load_checkpoint("memory://bucket/run/last.ckpt")["global_step"] == 2
    names = fsspec.filesystem("memory").ls("/bucket/run", detail=False)
    assert names == ["/bucket/run/last.ckpt"]
    WRITER.remove_checkpoint("memory://bucket/run/last.ckpt")
    WRITER.remove_checkpoint("memory://bucket/run/last.ckpt")
    assert last_good("memory://bucket/run") is None


def _checkpointed(folder):
    save(folder / "checkpoints/last.ckpt", 1)
    return folder


def test_last_is_found_by_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs/scenes"
    done, stopped, newer = (_checkpointed(runs / name) for name in ("2026-01-01_a", "2026-01-02_b", "2026-01-03_c"))
    (done / "results.json").touch()
    assert unfinished_run(runs) == newer
    with only_writer(newer):
        assert run_folder("scenes", "last", "new") == stopped.name
        with pytest.raises(FolderInUseError, match="2026-01-03_c: another run"), only_writer(newer):
            pass
    assert run_folder("scenes", None, "new") == run_folder("others", "last", "new") == "new"
    assert str(find_checkpoint("last", runs)).endswith("checkpoints/last.ckpt")
    assert str(find_checkpoint("a.ckpt")) == "a.ckpt"
    assert settle_resume(tiny_config("resume=last"), stopped)[0].resume == str(stopped / "checkpoints/last.ckpt")
    assert settle_resume(tiny_config("resume=last"), tmp_path / "fresh")[0].resume is None
    assert settle_resume(tiny_config(f"resume={stopped}"), tmp_path)[0].resume == str(stopped / "checkpoints/last.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        settle_resume(tiny_config(f"resume={tmp_path}"), tmp_path)


def test_rows_are_written_at_once_and_carried_on(tmp_path):
    path = tmp_path / "metrics.csv"
    writer = csv_logger(RunInfo(tmp_path))
    writer.log_metrics({"a": 1.5, "epoch": 0}, 0)
    writer.log_metrics({"a": torch.tensor(2.5), "epoch": 0}, 2)
    writer.log_metrics({"b": 3.5, "epoch": 0}, 2)
    assert read_rows(path) == [
        {"a": "1.5", "epoch": "0", "step": "0"},
        {"a": "2.5", "epoch": "0", "step": "2"},
        {"b": "3.5", "epoch": "0", "step": "2"},
    ]
    with path.open("a") as file:
        file.write("7.5,,0,1")  # killed here: the step may be 1 or 11
    assert len(read_rows(path)) == 3
    again = csv_logger(RunInfo(tmp_path, resume=tmp_path / "last.ckpt", resumed_step=2))
    again.log_metrics({"a": 4.5}, 2)
    with path.open() as file:
        assert [(row["a"], row["step"]) for row in csv.DictReader(file)] == [("1.5", "0"), ("4.5", "2")]
    csv_logger(RunInfo(tmp_path))
    assert not path.exists() and os.listdir(tmp_path) == []
