"""A tiny recipe, run: whole, again, killed and continued."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fastcap.build import CONFIG_DIR
from fastcap.data.scenes import Scenes, write_coco
from fastcap.recipes import RecipeError, run_recipe
from fastcap.recipes.run import run_process
from fastcap.reporting.runs import find_runs
from fastcap.training.checkpoints import newest_checkpoint
from tests.recipes.command import Forked, settings, start_server

pytestmark = pytest.mark.slow  # every test follows one run of a recipe
ROOT = Path(__file__).parents[2]
RECIPE = {
    "teacher": {"job": "train", "overrides": ["decoder=autoregressive_mini", "refinement=greedy"]},
    "captions": {"job": "eval", "overrides": ["ckpt={teacher}/checkpoints/best.ckpt", "split=train"]},
    "taught": {
        "job": "train",
        "overrides": [
            "init.captioner={teacher}/checkpoints/best.ckpt",
            "data.taught=[{captions}/captions_train_fastcap_results.json]",
            "trainer.check_val_every_n_epoch=5",
        ],
    },
    "steps_2": {"job": "eval", "overrides": ["ckpt={taught}/checkpoints/best.ckpt", "refinement.num_steps=2"]},
    "decoding": {
        "job": "bench decoding",
        "overrides": [
            *["--models", "{taught}/checkpoints/best.ckpt", "{teacher}/checkpoints/best.ckpt", "--max-images", 2],
            *["--refinements", "2x3", "--beams", 1, "--rounds", 1, "--threads", torch.get_num_threads()],
        ],
    },
}


def _follow(run, runner, given, recipe=RECIPE):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=given)
        cfg.recipe = OmegaConf.create(recipe)
        return run_recipe(cfg, run, given, runner)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A recipe killed in its third stage, then continued: (folder, overrides, runners, error, metrics)."""
    folder = tmp_path_factory.mktemp("recipe")
    source = Scenes(32, 16, 16)
    for split in ("train", "val"):
        write_coco(source.split(split), folder / "data", size=32)
    given, run = settings(folder / "data"), folder / "runs/scenes/one"
    start_server()  # here, where it finds this checkout
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    first, second = Forked(folder / "first.txt", taught="end:6"), Forked(folder / "second.txt")
    with pytest.raises(RecipeError) as error:
        _follow(run, first, given)
    metrics = _follow(run, second, given)
    yield run, given, (first, second), str(error.value), metrics
    patch.undo()


def test_a_killed_stage_goes_on_and_nothing_is_done_twice(broken):
    run, _, (first, second), error, _ = broken
    assert first.stages == ["teacher", "captions", "taught"]
    assert "stage 'taught' was killed by SIGKILL" in error and "03_taught" in error and error.count("\n") == 0
    assert second.stages == ["taught", "steps_2", "decoding"]
    assert "goes on from" in second.output.read_text()
    resumed = json.loads((run / "03_taught/results.json").read_text())
    assert resumed["epochs"] == 2 and resumed["resumed"].endswith("03_taught/checkpoints/last.ckpt")


def test_the_same_command_again_does_nothing_and_says_the_same(broken, capsys):
    run, given, _, _, metrics = broken
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/**/*") if path.is_file()}
    runner = Forked(run / "third.txt")
    assert _follow(run, runner, given) == metrics and runner.stages == []
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("*/**/*") if path.is_file()}
    printed = capsys.readouterr().out
    assert "CIDEr-D" in printed and "steps_2" in printed and "captions" not in printed


def test_the_table_joins_quality_and_time(broken):
    run, _, _, _, metrics = broken
    with open(run / "recipe.csv", newline="") as file:
        rows = {row["stage"]: row for row in csv.DictReader(file)}
    evaluated = json.loads((run / "04_steps_2/results.json").read_text())
    row = rows["steps_2"]
    assert (row["num_steps"], row["num_lengths"], row["split"]) == ("2", "3", "val")
    assert float(row["cider"]) == evaluated["metrics"]["val/cider"]
    assert float(row["decode_ms"]) == evaluated["decode_ms"] > 0
    assert rows["captions"]["split"] == "train" and float(rows["captions"]["decode_ms"]) > 0
    results = json.loads((run / "results.json").read_text())
    assert results["metrics"] == metrics and results["stages"][2] == "03_taught" and "val/distinct" in metrics


def test_the_last_checkpoint_is_the_newest_runs_best(broken):
    run = broken[0]
    best = torch.load(newest_checkpoint(run.parents[1]), weights_only=True)["state_dict"]
    student = torch.load(run / "03_taught/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(best[name], student[name]) for name in student)
    assert newest_checkpoint(run.parents[1]).read_bytes() == (run / "checkpoints/best.ckpt").read_bytes()


def test_reports_find_the_stages(broken):
    names = {found.path.name for found in find_runs([broken[0].parent])}
    assert names >= {"one", "01_teacher", "02_captions", "03_taught", "04_steps_2"}


def test_the_students_captions_are_partly_the_teachers(broken):
    told = (broken[0] / "03_taught/.hydra/overrides.yaml").read_text()
    assert "02_captions/captions_train_fastcap_results.json" in told
    assert "teaches 32 of 32 images" in broken[2][1].output.read_text()


def test_a_failing_stage_is_named(broken, tmp_path):
    given = [*broken[1], "data.source.root=nowhere"]
    with pytest.raises(RecipeError, match="stage 'teacher' failed with status 2") as error:
        _follow(tmp_path / "run", Forked(tmp_path / "out.txt"), given)
    assert "01_teacher" in str(error.value) and "nowhere" in (tmp_path / "out.txt").read_text()


def test_a_typo_in_the_last_training_is_found_at_once(broken, tmp_path):
    recipe = {**RECIPE, "late": {"job": "train", "overrides": ["optim.optimizer.lrr=1"]}}
    runner = Forked(tmp_path / "out.txt")
    with pytest.raises(RecipeError, match=r"stage 'late': .*optim\.optimizer\.lrr"):
        _follow(tmp_path / "run", runner, broken[1], recipe)
    assert runner.stages == []


def test_a_stage_is_a_process_with_a_status(capfd):
    assert run_process(["bench", "--no-such-option"]) == 2
    assert "fastcap bench: error" in capfd.readouterr().err


def test_cocos_recipe_trains_its_stages(broken, tmp_path):
    given = [
        *(text for text in broken[1] if "killer" not in text),
        "experiment=coco_base",
        "trainer.accelerator=cpu",
        "data.image_size=32",
        "data.phrase_mentions=2",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        *(f"{part}.num_heads=2" for part in ("decoder.self_attention", "decoder.expert.cross_attention")),
    ]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        plan = OmegaConf.to_container(compose("train", overrides=given).recipe)
    trainings = {name: plan[name] for name in ("sight", "teacher", "captions", "taught", "reinforced")}
    runner = Forked(tmp_path / "out.txt")
    metrics = _follow(tmp_path / "run", runner, given, trainings)
    assert runner.stages == list(trainings) and metrics["val/cider"] >= 0
    last = torch.load(tmp_path / "run/05_reinforced/checkpoints/last.ckpt", weights_only=True)["fastcap"]["config"]
    assert last["trainer"]["precision"] == "bf16-mixed" and last["refinement"]["phrase_weight"] > 0
    assert "SpatialMambaBackbone" in last["backbone"]["_target_"] and last["objective"]["reinforce_weight"] > 0


@pytest.mark.timeout(1800)
def test_the_command_itself_twice(broken, tmp_path):
    shutil.copytree(broken[0].parents[2] / "data", tmp_path / "data")
    given = [text for text in settings("data") if "killer" not in text]
    command = [sys.executable, "-m", "fastcap.train", "recipe=taught_by_twin", *given, "trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stages = len(OmegaConf.load(Path(CONFIG_DIR) / "recipe/taught_by_twin.yaml").recipe)
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=1500, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout + done.stderr)
    assert outputs[0].count("fastcap train") == 4 and "fastcap train" not in outputs[1]
    assert outputs[1].count("finished before") == stages and len(list(tmp_path.glob("runs/scenes/*"))) == 1
    names = ["greedy", "beam", "beam_named", "draft", *(f"draft_{lengths}" for lengths in (2, 3, 5))]
    names += [f"steps_{steps}" for steps in (1, 2, 3, 4, 8)]
    assert all(name in outputs[1] for name in names)
