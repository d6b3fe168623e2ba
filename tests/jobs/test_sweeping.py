"""Sweeps called again: nothing twice, nothing lost, nothing hidden."""

import csv
import json
import signal

import pytest
from omegaconf import OmegaConf

from fastcap.build import ConfigError
from fastcap.jobs.sweep import SweepSummary, job_folder, run_job, summarise, swept_first, value_name
from fastcap.reporting.runs import read_run
from fastcap.train import train
from tests.tiny import QUICK, tiny_config
from tests.training.command import run


def _sweep(folder, tasks, **sweeper):
    folder.mkdir(parents=True, exist_ok=True)
    hydra = {"overrides": {"task": tasks}, "sweep": {"dir": str(folder)}, "sweeper": sweeper}
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "multirun.yaml")
    return folder


def test_jobs_are_named_by_what_varies_and_not_by_number(tmp_path):
    tasks = ["seed=3", "optim.optimizer.lr=1e-3,2e-3", "backbone.dims=[8],[16]"]
    sweep = _sweep(tmp_path, tasks, params={"decoder": "choice(dense,moe)"})
    overrides = ["seed=3", "optim.optimizer.lr=1e-3", "backbone.dims=[8]", "decoder=dense"]
    name = job_folder("trial", 7, str(sweep), overrides)
    assert name == job_folder("trial", 0, str(sweep), overrides[::-1]) and name.startswith(
        "dims-8_decoder-dense_lr-1e-3-"
    )
    assert job_folder(None, 7, str(sweep), overrides) == "7"
    assert swept_first(sweep, overrides) == [*overrides[1:], "seed=3"]


def test_names_hold_no_letter_that_needs_quotes_and_never_meet():
    assert value_name(["optim.optimizer.lr=1e-3", "decoder=dense"]) == "decoder-dense_lr-1e-3"
    names = [value_name([f"a.b={value}"]) for value in ("x/y", "x,y", "xy", "[x,y]", "x" * 300, "x" * 301)]
    assert len(set(names)) == len(names)
    assert all(set("/,=[]{} ").isdisjoint(name) and len(name) < 120 for name in names)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "lr-1"
    metrics = run_job(tiny_config("trainer.max_epochs=1"), folder, lambda cfg: train(cfg, folder))
    return folder, metrics


def _must_not_train(cfg):
    raise AssertionError("trained again")


def test_a_finished_job_is_not_trained_again(finished):
    folder, metrics = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run_job(tiny_config("trainer.max_epochs=1", "logger=[csv,wandb]"), folder, _must_not_train)
    assert again == metrics and "val/cider" in again
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_another_configuration_does_not_pass_for_the_same_job(finished):
    folder, _ = finished
    assert run_job(tiny_config("trainer.max_epochs=3"), folder, _must_not_train) is None
    error = json.loads((folder / "failed.json").read_text())["error"]
    (folder / "failed.json").unlink()
    assert "trainer.max_epochs: 1, now 3" in error and "another name" in error and "job.json" in error


def test_a_stopped_job_goes_on_from_its_last_checkpoint(finished):
    folder, metrics = finished
    (folder / "results.json").write_text('{"metr')  # as a kill while writing would leave it
    resumed = []

    def go_on(cfg):
        resumed.append(cfg.resume)
        return train(cfg, folder)

    again = run_job(tiny_config("trainer.max_epochs=1"), folder, go_on)
    assert resumed == [str(folder / "checkpoints/last.ckpt")]
    assert {k: v for k, v in again.items() if k.startswith("val/")} == {
        k: v for k, v in metrics.items() if k.startswith("val/")
    }


def test_a_broken_checkpoint_starts_the_job_over(tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"half")
    seen = []
    run_job(tiny_config(), tmp_path, lambda cfg: seen.append(cfg.resume) or {})
    assert seen == [None] and "starts over" in caplog.text


def test_a_failing_job_is_recorded_and_tried_again(tmp_path):
    def fail(cfg):
        raise ConfigError("no such\nthing")

    cfg = tiny_config()
    assert run_job(cfg, tmp_path, fail) is None
    assert read_run(tmp_path).status == "failed" and "no such" in read_run(tmp_path).error
    assert run_job(cfg, tmp_path, lambda cfg: {"val/cider": 1.0}) == {"val/cider": 1.0}
    assert not (tmp_path / "failed.json").exists()


def _job(sweep, lr, cider=None, error=None):
    (sweep / f"lr-{lr}/.hydra").mkdir(parents=True)
    (sweep / f"lr-{lr}/.hydra/overrides.yaml").write_text(f"- lr={lr}\n- seed=1\n")
    if cider is not None:
        results = {"metrics": {"val/cider": cider}, "steps": 8, "minutes": 0.1}
        (sweep / f"lr-{lr}/results.json").write_text(json.dumps(results))
    if error:
        (sweep / f"lr-{lr}/failed.json").write_text(json.dumps({"error": error}))


def test_the_summary_is_a_table_a_plot_a_page_and_a_status(tmp_path, capsys):
    sweep = _sweep(tmp_path / "s", ["lr=1,2,3", "seed=1"])
    _job(sweep, 1, 10.0)
    _job(sweep, 2, 30.0)
    assert summarise(sweep) == {}
    _job(sweep, 3, error="ValueError: a disk of stone\nmore")
    with pytest.raises(SystemExit) as stop:
        SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(sweep)}}}))
    printed = capsys.readouterr()
    assert (
        stop.value.code == 1
        and "lr-3: ValueError: a disk of stone\n" in printed.err
        and "1 failed: lr-3" in printed.err
    )
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["lr"], row["status"], row["CIDEr-D"]) for row in rows] == [
        ("2", "finished", "30.0"),
        ("1", "finished", "10.0"),
        ("3", "failed", ""),
    ]


@pytest.mark.slow
def test_twelve_jobs_one_killed_one_raising_finish_by_the_same_command(tmp_path):
    command = ["train", "-m", *QUICK, "sweep_name=twelve", "data.source.num_val=8"]
    command += ["optim.optimizer.lr=1e-3,2e-3,3e-3,4e-3", "refinement.num_steps=1,2,3"]
    command += ["+callbacks.fault._target_=tests.jobs.fault.Fault", f"+callbacks.fault.log={tmp_path}/steps.txt"]
    command += ["+callbacks.fault.kill=lr-0.002_num_steps-2", "+callbacks.fault.fail=lr-0.003_num_steps-3"]
    sweep = tmp_path / "runs/scenes-sweep/twelve"

    def results():
        return {path.parent.name: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}

    status, output = run(tmp_path, *command)
    assert status == -signal.SIGKILL, output[-2000:]
    first = results()
    assert len(first) == 4

    status, output = run(tmp_path, *command)
    assert status == 1, output[-2000:]
    assert "1 failed: lr-0.003_num_steps-3" in output and "a disk of stone" in output and "Traceback" not in output
    second = results()
    assert len(second) == 11 and first.items() <= second.items()
    assert read_run(sweep / "lr-0.003_num_steps-3").status == "failed"

    status, output = run(tmp_path, *command)
    assert status == 0, output[-2000:]
    third = results()
    assert len(third) == 12 and second.items() <= third.items()
    assert not list(sweep.glob("*/failed.json"))
    steps = (tmp_path / "steps.txt").read_text().splitlines()
    assert len(steps) == len(set(steps)) == 12 * 8, "every step of every job was done once"
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 12 and {row["status"] for row in rows} == {"finished"} and {row["steps"] for row in rows} == {"8"}
    )
