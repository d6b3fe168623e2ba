"""Rows that survive a resume, TensorBoard, names, and what is printed."""

import csv

import pytest

from fastcap.training.log_wandb import ID_FILE
from fastcap.training.loggers import RunInfo, csv_logger, short_name


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_steps_that_are_done_again_are_not_there_twice(tmp_path):
    first = csv_logger(RunInfo(tmp_path))
    for step in range(5):
        first.log_metrics({"train/loss": float(step)}, step=step)
    first.save()
    again = csv_logger(RunInfo(tmp_path, resume=tmp_path / "last.ckpt", resumed_step=3))
    assert [row["step"] for row in _rows(tmp_path)] == ["0", "1", "2"], "kept even if the run breaks off here"
    again.log_metrics({"train/loss": 30.0, "val/cider": 1.0}, step=3)
    again.save()
    rows = _rows(tmp_path)
    assert [(row["step"], row["train/loss"], row["val/cider"]) for row in rows] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("3", "30.0", "1.0"),
    ]


def test_a_new_run_in_an_old_folder_starts_over(tmp_path):
    for value in (1.0, 2.0):
        logger = csv_logger(RunInfo(tmp_path))
        logger.log_metrics({"train/loss": value}, step=0)
        logger.save()
    assert [row["train/loss"] for row in _rows(tmp_path)] == ["2.0"]
    assert not (tmp_path / ID_FILE).exists()


def test_tensorboard_has_scalars(multirun):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(multirun[0][0] / "tensorboard")).Reload()
    assert {"val/cider", "val/bleu4", "train/loss", "moe/load_e0", "dlag/mae"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], ""),
        (["optim.optimizer.lr=1e-3", "decoder=dense"], "lr=1e-3 decoder=dense"),
        (["decoder.dim=8", "alignment.dim=9"], "decoder.dim=8 alignment.dim=9"),
        (["++seed=3", "~callbacks.progress", "logger=csv", "resume=/x/last.ckpt"], "seed=3"),
        (["data.source.root=" + "x" * 200], "root=" + "x" * 94 + "…"),
    ],
)
def test_names_are_short_overrides(overrides, name):
    assert short_name(overrides) == name


def test_nothing_is_advertised_and_no_version_number_is_shown(multirun):
    printed = multirun[1]
    assert "Epoch 0/0" in printed and "train/loss" in printed and "val/cider" in printed
    for noise in ("v_num", "Tip", "GPU available", "will be deleted", "deprecated", "` stopped", "Images sizes"):
        assert noise not in printed, noise
    assert "arning" not in printed
