"""Run folders, and the page that compares them."""

import json
import os
import time

import pytest
from PIL import Image

from fastcap.reporting import RunFolderError, compare, find_runs, write_runs_page
from fastcap.reporting.history import Point
from fastcap.reporting.runs import labels, num_jobs, read_run
from fastcap.reporting.runs_page import thin
from tests.reporting.report_browser import assert_offline, open_page

HEADER = "epoch,step,val/cider,val/bleu4,val/loss,dlag/mae,train/loss,train/loss_token,moe/load_e0,time/images_per_s\n"


def _make_run(folder, overrides, ciders=(10.0, 30.0, 20.0), finished=True, samples=0):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text("\n".join(f"- {o}" for o in overrides) or "[]")
    (folder / ".hydra/config.yaml").write_text("trainer: {max_epochs: 4}\noptim: {}\nname: ${oc.env:HOME}\n")
    if ciders:
        lines = [HEADER]
        for epoch, cider in enumerate(ciders):
            for step in (10 * epoch + 4, 10 * epoch + 9):
                lines.append(f"{epoch},{step},,,,,{9 / (1 + step):.4f},{7 / (1 + step):.4f},0.5,\n")
            lines.append(f"{epoch},{10 * epoch + 9},{cider},{cider / 4},{5 / (1 + epoch)},1.5,,,,\n")
            lines.append(f"{epoch},{10 * epoch + 9},,,,,,,,123.5\n")
        (folder / "metrics.csv").write_text("".join(lines))
    if finished:
        metrics = {"val/cider": max(ciders), "val/bleu4": max(ciders) / 4, "time/images_per_s": 123.5}
        results = {"metrics": metrics, "epochs": len(ciders), "minutes": 2.5, "parameters": 1234567}
        (folder / "results.json").write_text(json.dumps(results))
    for number in range(samples):
        (folder / "samples").mkdir(exist_ok=True)
        Image.new("RGB", (1600, 900), (200, 30 * number, 0)).save(folder / f"samples/epoch_{number:03d}.png")
    _age(folder, 3600)
    return folder


def _age(folder, seconds):
    then = time.time() - seconds
    for entry in os.scandir(folder):
        os.utime(entry.path, (then, then))


@pytest.fixture
def runs(tmp_path):
    """Three runs of which one broke off, a sweep with a failed job and one never started, and an evaluation."""
    root = tmp_path / "runs"
    _make_run(root / "scenes/2026-01-01_a", ["optim.optimizer.lr=1e-3", "logger=csv"], samples=2)
    _make_run(root / "scenes/2026-01-02_b", ["optim.optimizer.lr=<script>window.hacked=1</script>"], (5.0, 40.0))
    _make_run(root / "scenes/2026-01-03_c", ["optim.optimizer.lr=3e-3"], (7.0,), finished=False)
    sweep = root / "sweep/2026-01-04_d"
    for job, size in enumerate((1, 2)):
        _make_run(sweep / str(job), [f"decoder.num_experts={size}", "seed=1"], (20.0 + size,))
    _make_run(sweep / "10", ["decoder.num_experts=0", "seed=1"], (), finished=False)
    (sweep / "multirun.yaml").write_text("hydra: {overrides: {task: ['decoder.num_experts=1,2,0,4', seed=1]}}")
    for job, steps in enumerate((1, 4)):
        folder = root / "eval-sweep/e" / str(job)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra/overrides.yaml").write_text(f"- ++refinement.num_steps={steps}")
        metrics = {"test/cider": 40.0 + steps, "test/bleu4": 9.0, "time/eval_images_per_s": 300.0 / steps}
        results = {"ckpt": "best.ckpt", "split": "test", "metrics": metrics}
        (folder / "results.json").write_text(json.dumps(results))
    (root / "eval-sweep/e/multirun.yaml").write_text("hydra: {}")
    return root


def test_runs_are_found_once_in_order_and_named_by_what_differs(runs):
    found = find_runs([runs / "scenes", runs, runs / "scenes/2026-01-01_a"])
    assert [run.path.name for run in found] == [
        "0",
        "1",
        "2026-01-01_a",
        "2026-01-02_b",
        "2026-01-03_c",
        "0",
        "1",
        "10",
    ]
    scenes = found[2:5]
    assert labels(scenes)[0] == "optim.optimizer.lr=1e-3" and labels(scenes)[2] == "optim.optimizer.lr=3e-3"
    assert labels([scenes[0], scenes[0]])[0] == "2026-01-01_a"
    assert [run.is_evaluation for run in found] == [True, True] + [False] * 6


def test_statuses_and_numbers_come_from_the_files(runs):
    by_name = {run.path.name: run for run in find_runs([runs / "scenes", runs / "sweep"])}
    run = by_name["2026-01-01_a"]
    assert run.status == "finished" and run.best("val/cider") == Point(19, 1, 30.0) and run.last("val/cider") == 20.0
    assert run.best("val/loss", highest=False).value == pytest.approx(5 / 3)
    assert by_name["2026-01-03_c"].status == "unfinished" and by_name["2026-01-03_c"].progress == "1 of 4 epochs"
    assert by_name["10"].status == "failed"
    (by_name["10"].path / "train.log").write_text("just now")
    assert read_run(by_name["10"].path).status == "running"
    broken = by_name["2026-01-03_c"].path
    with open(broken / "metrics.csv", "a") as file:
        file.write("1,14,,,,,nan,nan,0.5,\n1,19,,,,,inf")
    (broken / "results.json").write_text('{"metrics": {')
    assert read_run(broken).status == "diverged"


def test_validating_the_best_checkpoint_again_adds_no_epoch(tmp_path):
    folder = _make_run(tmp_path / "run", [], (10.0, 30.0, 20.0))
    with open(folder / "metrics.csv", "a") as file:
        file.write("3,30,30.0,7.5,2.5,1.5,,,,\n")
    run = read_run(folder)
    assert [p.value for p in run.history["val/cider"]] == [10.0, 30.0, 20.0]
    assert len(run.history["dlag/mae"]) == 3 and run.progress == "3 of 4 epochs"


@pytest.mark.parametrize(
    ("task", "jobs"),
    [("[a=1,2, 'b=x,y,z']", 2 * 3), ("['a=1,2', 'b=[1,2],[3,4]', '~c']", 4), ("['a=range(1,9)']", None), ("3", None)],
)
def test_jobs_of_a_sweep_are_counted_where_they_can_be(tmp_path, task, jobs):
    task = task.replace("[a=1,2,", "['a=1,2',")
    (tmp_path / "multirun.yaml").write_text(f"hydra: {{overrides: {{task: {task}}}}}")
    assert num_jobs(tmp_path) == jobs


def test_long_curves_are_averaged_and_what_is_no_number_is_left_out():
    points = [Point(n, n // 100, float(n)) for n in range(1000)]
    points[10:20] = [Point(n, 0, float("nan")) for n in range(10, 20)]
    x, y = thin(points, 100, by_epoch=False)
    assert len(x) == 99 and x == sorted(x) and x[-1] == 999.0
    assert y[0] == 4.5 and y[1] == 24.5
    assert thin(points[:3], 100, by_epoch=True) == ([1.0, 1.0, 1.0], [0.0, 1.0, 2.0])


def test_the_page_in_a_browser_draws_curves_sweeps_and_pictures(runs, tmp_path):
    page = tmp_path / "report.html"
    write_runs_page(find_runs([runs]), page)
    assert_offline(page)
    switch = """
      const before = plots()[0].marks;
      document.querySelector(".legend input").click(); await pause(100);
      found.switched = [before, plots()[0].marks];
      document.querySelector('.legend button[data-all=""]').click(); await pause(100);
      found.none = plots().length;
      document.querySelector('.legend button[data-all="1"]').click(); await pause(100);
      found.all = plots().map(plot => plot.marks);
    """
    found = open_page(page, switch)
    assert found["problems"] == [] and found["resources"] == [] and found["hacked"] is None
    # Of the runs val/cider, val/bleu4, dlag/mae, val/loss, train/loss, train/loss_token, moe/load_e0 and
    # time/images_per_s; the evaluations' speed and quality.
    assert len(found["plots"]) == 9 and all(plot["svgs"] and plot["marks"] for plot in found["plots"])
    assert found["plots"][0]["marks"] == 5
    assert found["switched"] == [5, 4] and found["none"] == 1 and found["all"] == [p["marks"] for p in found["plots"]]
    assert found["images"] == [1100] and found["overflow"] <= 0
    text = found["text"]
    for shown in ("finished", "unfinished", "failed", "1 not started", "1 without a result", "epoch_001.png"):
        assert shown in text
    assert "optim.optimizer.lr=<script>window.hacked=1</script>" in text and "logger=csv" not in text


def test_folders_without_a_run_are_one_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="no run in this folder"):
        find_runs([tmp_path / "empty"])
    for arguments, message in (
        ([], "runs: no such folder"),
        (["empty"], "empty: no run in this folder"),
        (["empty", "-o", "nowhere/report.html"], "--output nowhere/report.html: there is no folder nowhere"),
    ):
        with pytest.raises(SystemExit) as stop:
            compare.main(arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("fastcap: error: ") and message in error and error.count("\n") == 1


def test_the_command_writes_the_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    compare.main([])
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert "report.html (8 runs)" in capsys.readouterr().out
