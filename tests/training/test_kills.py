"""Runs that are killed and go on by the same command end with the very bits of a run that was left alone."""

import csv
import json
import random
import signal

import pytest
import torch

from tests.training.command import QUICK, train


def _state(run):
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: checkpoint[name] for name in names}


def _differences(one, other, path=""):
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        return [d for key in one for d in _differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list):
        assert len(one) == len(other), path
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in _differences(*pair, f"{path}.{i}")]
    return [] if one == other else [path]


def _rows(run):
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def _val_metrics(run):
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def assert_same_run(one, other):
    assert _differences(_state(one), _state(other)) == []
    assert _rows(one) == _rows(other)
    assert _val_metrics(one) == _val_metrics(other)
    assert not list(other.rglob("*.part"))


def test_killed_in_a_checkpoint_and_in_validation(tmp_path, whole):
    for moment in ("half:2", "validation:1"):
        status, output = train(tmp_path, *QUICK, KILL=moment)
        assert status == -signal.SIGKILL, output[-2000:]
    assert "goes on from" in output
    status, output = train(tmp_path, *QUICK)
    assert status == 0, output[-2000:]
    assert_same_run(whole, tmp_path / "run")


def moments(count, seed):
    """Moments to kill a process at, at least one of each phase that matters, in random order."""
    draw = random.Random(seed)
    phases = ["validation", "validated", "half", "written", "renamed", "rows", "start", "backward", "end", "timer"]
    chosen = [phases[i % len(phases)] for i in range(count)]
    draw.shuffle(chosen)
    most = {"validation": 2, "validated": 1, "timer": 600, "half": 3, "written": 5, "renamed": 5, "rows": 1}
    least = {"timer": 100}
    return [f"{phase}:{draw.randint(least.get(phase, 1), most.get(phase, 6))}" for phase in chosen]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_twenty_moments(tmp_path):
    settings = [*QUICK, "trainer.max_epochs=30", "data.source.num_train=48", "data.source.num_val=16"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    status, output = train(whole, *settings)
    assert status == 0, output[-2000:]
    for number, moment in enumerate(moments(20, seed=0)):
        status, output = train(broken, *settings, KILL=moment)
        assert status == -signal.SIGKILL, f"{number}, {moment}: {status}\n{output[-2000:]}"
        with (tmp_path / "log.txt").open("a") as log:
            log.write(f"{moment} {[line for line in output.splitlines() if line.startswith('resume=last')]}\n")
    status, output = train(broken, *settings)
    assert status == 0, output[-2000:]
    assert_same_run(whole / "run", broken / "run")
