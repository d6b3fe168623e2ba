"""Weights shared out over two gloo processes: the run of one process, with checkpoints that any process reads."""

import json
import os

import pytest
import torch

from fastcap.build import ConfigError, build_trainer
from fastcap.eval import evaluate
from fastcap.training import ShardingError
from fastcap.training.files import upgrade
from fastcap.training.sharded import shard
from tests.tiny import tiny_config
from tests.training.command import QUICK, end, start, train
from tests.training.test_two_processes import assert_equal_runs

KEPT = ("callbacks.speed_quality", "callbacks.refinement=null", "callbacks.checkpoint")
# Momentum is a state to be kept, and unlike Adam it does not turn rounding errors into whole steps.
SETTINGS = [
    *(s for s in QUICK if not s.startswith(KEPT)),
    "optim.optimizer._target_=torch.optim.SGD",
    "~optim.optimizer.betas",
    "~optim.optimizer.fused",
    "+optim.optimizer.momentum=0.9",
    "optim.optimizer.lr=0.002",  # at 0.01 five steps make 3e-5 of an error of rounding
    "length.dropout=0",
    "data.source.num_train=24",
    "callbacks.refinement.num_images=1",
    "callbacks.speed_quality.steps=[1]",
    "callbacks.speed_quality.max_images=4",
    "+callbacks.probe._target_=tests.training.probe.Probe",
]
ONE = ["data.batch_size=8", "data.eval_batch_size=8"]
TWO = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.batch_size=4", "data.eval_batch_size=4"]


def sharded(folder, *settings, **environment):
    """Run a training command in two processes; returns the first one's status and output."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 2000), "NODE_RANK": "0"}
    world |= environment
    ranks = [start(folder, *settings, *TWO, name=f"{rank}.txt", LOCAL_RANK=str(rank), **world) for rank in (1, 0)]
    results = [end(process) for process in ranks]
    return results[-1]


@pytest.mark.slow
def test_a_sharded_run_equals_one_process_also_when_it_was_stopped(tmp_path, monkeypatch):
    """Stopped by a signal, gone on with, and evaluated by a single process."""
    monkeypatch.setenv("FASTCAP_TRUST", "tests")  # the checkpoints name the callbacks of these tests
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    status, output = train(one, *SETTINGS, *ONE)
    assert status == 0, output[-2000:]
    status, output = sharded(two, *SETTINGS, KILL="SIGTERM:5")
    assert status == 75 and "stopped by SIGTERM after step 5" in output, output[-2000:]
    checkpoint = torch.load(two / "run/checkpoints/last.ckpt", weights_only=True)
    like = torch.load(one / "run/checkpoints/last.ckpt", weights_only=True)
    assert {k: v.shape for k, v in checkpoint["state_dict"].items()} == {
        k: v.shape for k, v in like["state_dict"].items()
    }
    assert list(checkpoint["optimizer_states"][0]) == list(like["optimizer_states"][0])
    groups = [end["optimizer_states"][0]["param_groups"] for end in (checkpoint, like)]
    assert [group["params"] for group in groups[0]] == [group["params"] for group in groups[1]]

    status, output = sharded(two, *SETTINGS)
    assert status == 0, output[-2000:]
    assert_equal_runs(one / "run", two / "run")
    total = sum(v.numel() for k, v in like["state_dict"].items() if "running" not in k and "num_batches" not in k)
    held = {
        name: int((two / f"run/{name}.txt").read_text())
        for name in ("train_0", "train_1", "validation_0", "validation_1")
    }
    assert held["train_0"] + held["train_1"] == held["validation_0"] == held["validation_1"]
    assert total * 0.45 < held["train_1"] <= held["train_0"] < total * 0.55
    assert list((two / "run/refinement").glob("*.png")) and (two / "run/speed_quality.csv").exists()

    overrides = {"trainer.strategy": "auto", "trainer.devices": 1, "logger": None, "callbacks": {}}
    scores = evaluate(two / "run/checkpoints/best.ckpt", "val", overrides, tmp_path / "eval")
    best = json.loads((two / "run/results.json").read_text())["metrics"]
    for name in best:
        if name.startswith("val/") and "loss" not in name:
            assert scores[name] == best[name], name


def test_checkpoints_of_older_versions_are_brought_up_to_date():
    state = {"step": torch.tensor(3.0), "exp_avg": torch.tensor(0.5)}
    old = {
        "state_dict": {"model.alignment.log_scale": torch.tensor(2.5), "model.image_mean": torch.zeros(3)},
        "optimizer_states": [{"state": {7: dict(state)}}],
    }
    new = upgrade(old)
    assert new["state_dict"]["model.alignment.log_scale"].tolist() == [2.5]
    assert new["optimizer_states"][0]["state"][7]["exp_avg"].tolist() == [0.5]
    assert new["optimizer_states"][0]["state"][7]["step"].ndim == 0


def test_what_cannot_be_sharded_is_said_in_one_line(tmp_path):
    with pytest.raises(ShardingError, match="trainer=fsdp trains captioners, not a Linear"):
        shard(torch.nn.Linear(2, 2), None)
    with pytest.raises(ConfigError, match="16-mixed"):
        build_trainer(tiny_config("trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=16-mixed"), tmp_path)


@pytest.mark.slow
def test_runs_change_between_sharded_and_not(tmp_path):
    """Started sharded, ended by one process; and the other way round."""
    one, left, right = (tmp_path / name for name in ("one", "left", "right"))
    for folder in (one, left, right):
        folder.mkdir()
    status, output = train(one, *SETTINGS, *ONE)
    assert status == 0, output[-2000:]
    ways = (
        (left, sharded(left, *SETTINGS, KILL="SIGTERM:5"), lambda: train(left, *SETTINGS, *ONE)),
        (right, train(right, *SETTINGS, *ONE, KILL="SIGTERM:5"), lambda: sharded(right, *SETTINGS)),
    )
    for folder, (status, output), go_on in ways:
        assert status == 75, output[-2000:]
        status, output = go_on()
        assert status == 0, output[-2000:]
        assert_equal_runs(one / "run", folder / "run")


@pytest.mark.slow
def test_a_resumed_sharded_run_equals_an_unbroken_one_with_adam(tmp_path):
    """Bit for bit, with the fused optimiser and its state."""
    settings = [s for s in SETTINGS if not s.startswith(("optim.", "~optim.", "+optim."))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    status, output = sharded(whole, *settings)
    assert status == 0, output[-2000:]
    status, output = sharded(parts, *settings, KILL="SIGUSR1:2")
    assert status == 75, output[-2000:]
    status, output = sharded(parts, *settings)
    assert status == 0, output[-2000:]
    ends = [torch.load(run / "run/checkpoints/last.ckpt", weights_only=True) for run in (whole, parts)]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    states = [end["optimizer_states"][0]["state"] for end in ends]
    assert states[0] and all(torch.equal(v, states[1][n][k]) for n, s in states[0].items() for k, v in s.items())
