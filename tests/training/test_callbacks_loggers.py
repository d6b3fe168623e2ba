"""Rows that survive a resume, TensorBoard, names, and what is printed."""

import pytest

from fastcap.training.loggers import short_name


def test_tensorboard_has_scalars(multirun):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(multirun[0][0] / "tensorboard")).Reload()
    assert {"val/cider", "val/bleu4", "train/loss", "moe/load_e0", "dlag/mae"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optim.optimizer.lr=1e-3", "decoder=dense"], "lr=1e-3 decoder=dense"),
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
