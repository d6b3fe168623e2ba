"""Captioners side by side: what is measured, how often, and the table that comes of it, written as it is measured."""

import csv
import functools
import itertools
import json
from timeit import timeit

import pytest
import torch

from fastcap.reporting.tables import SPEED_COLUMNS
from fastcap.tools import baselines, bench
from fastcap.tools.measure import MAX_RUNS, time_in_turns
from tests.tiny_captioner import write_checkpoint
from tests.tools.shrunk import SHRUNK


def _table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.ckpt")


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory):
    """A benchmark's folder, its rows, and how many rows the table had whenever it was written."""
    pytest.importorskip("transformers")
    folder, written = tmp_path_factory.mktemp("out"), []
    small = baselines.build_baseline("git-base", SHRUNK["git-base"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baselines.ARCHITECTURES["git-base"], "size", 32)
        patch.setattr(baselines, "build_baseline", lambda name: small)

        def look(line):
            if "runs" in line and (folder / "captioners.csv").exists():
                written.append(len(_table(folder / "captioners.csv")))

        patch.setattr(bench, "print", lambda *words, **_: look(str(words[0])), raising=False)
        options = ["--baselines", "git-base", "--beams", "1", "2", "--num-steps", "1", "4", "--seconds", "0.05"]
        options += ["--threads", str(torch.get_num_threads()), "--rounds", "2", "--out", str(folder)]
        bench.main(["captioners", "--models", str(checkpoint), *options])
    return folder, _table(folder / "captioners.csv"), written


@pytest.mark.slow
def test_every_system_has_a_row(measured):
    folder, rows, written = measured
    assert set(rows[0]) == set(SPEED_COLUMNS)
    told = [(row["system"], row["beams"], row["steps"], row["weights"]) for row in rows]
    ours = [("fastcap", "", steps, "trained") for steps in "14"]
    assert told == [*ours, *(("git-base", beams, "12", "random") for beams in "12")]
    for row in rows:
        assert 0 < float(row["p50_ms"]) <= float(row["p95_ms"]) and int(row["runs"]) >= 1
        assert float(row["file_mb"]) == pytest.approx(4e-6 * float(row["params"]), rel=0.05, abs=0.01)
    facts = json.loads((folder / "captioners.json").read_text())
    assert facts["matmul_gflop_per_s"] > 0 and "random weights" in facts["method"]
    assert written[:3] == [1, 2, 3], "each row was there before the next system was measured"


def test_runs_follow_the_budget_and_take_turns(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr("fastcap.tools.measure.timeit", functools.partial(timeit, timer=lambda: now[0]))

    def work(name, seconds):
        def take():
            now[0] += seconds
            order.append(name)

        return lambda: take

    builders = {"slow": work("slow", 0.2), "quick": work("quick", 0.001), "idle": work("idle", 0.0)}
    found = {key: len(times) for key, times in time_in_turns(builders, seconds=0.1, rounds=5)}
    assert found["slow"] == 1 and found["quick"] == pytest.approx(100, abs=5) and found["idle"] == MAX_RUNS
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns.count("quick") == 5 and turns.count("slow") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "none.ckpt"], "--models none.ckpt: no such model"),
        (["--baselines", "clip"], "no baseline 'clip'"),
        (["--images", "nowhere"], "nowhere: no such file"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        bench.main(["captioners", *arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2 and message in capsys.readouterr().err
