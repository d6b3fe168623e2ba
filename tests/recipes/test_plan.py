"""Recipes as data: what each stage is told, and one clear error for each mistake."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fastcap.build import CONFIG_DIR
from fastcap.recipes import RecipeError, read_plan
from fastcap.recipes.plan import JOBS
from fastcap.recipes.record import Record, recipe_folder

TWO_TEACHERS = {
    "first": {"job": "train", "overrides": ["decoder=autoregressive", "seed=1", "trainer.max_epochs=14"]},
    "second": {"job": "train", "overrides": ["decoder=autoregressive", "seed=2", "trainer.max_epochs=14"]},
    "captions_first": {"job": "eval", "overrides": ["ckpt={first}/checkpoints/best.ckpt", "split=train"]},
    "captions_second": {"job": "eval", "overrides": ["ckpt={second}/checkpoints/best.ckpt", "split=train"]},
    "student": {"job": "train", "overrides": ["data.taught=[{captions_first}/a.json,{captions_second}/a.json]"]},
    "times": {"job": "bench decoding", "overrides": ["--models", "{student}/checkpoints/best.ckpt", "--rounds", 2]},
}
GIVEN = ["experiment=flickr8k", "recipe.x.job=eval", "seed=7", "decoder=dense", "trainer.max_epochs=1", "resume=last"]


def _commands(recipe, given, run):
    plan = read_plan(OmegaConf.create(recipe), given)
    folders = {stage.name: run / stage.folder for stage in plan}
    return {stage.name: stage.command(folders) for stage in plan}


def test_several_teachers_and_what_each_stage_is_told(tmp_path):
    told = _commands(TWO_TEACHERS, GIVEN, tmp_path)
    # What makes a stage what it is stays; settings of the command line come last, so that they win.
    assert told["second"] == [
        *["train", "decoder=autoregressive", "seed=2"],
        *["experiment=flickr8k", "trainer.max_epochs=1", "recipe=none", "resume=last"],
        f"hydra.run.dir={tmp_path}/02_second",
    ]
    files = f"{tmp_path}/03_captions_first/a.json,{tmp_path}/04_captions_second/a.json"
    assert told["student"][:2] == ["train", f"data.taught=[{files}]"]
    assert {"seed=7", "decoder=dense"} <= set(told["student"])
    checkpoint = f"ckpt={tmp_path}/01_first/checkpoints/best.ckpt"
    assert told["captions_first"] == ["eval", checkpoint, "split=train", f"hydra.run.dir={tmp_path}/03_captions_first"]
    models = ["--models", f"{tmp_path}/05_student/checkpoints/best.ckpt", "--rounds", "2"]
    assert told["times"] == ["bench", "decoding", *models, "--out", f"{tmp_path}/06_times"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "recipe: must hold the stages by name"),
        ({"a": {"job": "train", "overides": []}}, r"recipe\.a\.overides: unknown key; a stage has job and overrides"),
        ({"a": {"job": "trian"}}, r"recipe\.a\.job: found 'trian'; choose from train, eval, bench decoding"),
        ({"a": {"overrides": []}}, r"recipe\.a\.job: found None"),
        ({"a": {"job": "train", "overrides": "seed=1"}}, r"recipe\.a\.overrides: must be a list"),
        ({"a": {"job": "train", "overrides": ["seed"]}}, r"recipe\.a\.overrides: 'seed' is no override of Hydra's"),
        ({"a": ["train"]}, r"recipe\.a: must hold job and overrides"),
        ({"a b": {"job": "train"}}, r"recipe\.a b: a stage's name may hold"),
        (
            {"a": {"job": "train"}, "b": {"job": "eval", "overrides": ["ckpt={c}/x"]}, "c": {"job": "train"}},
            r"recipe\.b\.overrides: \{c\} is no earlier stage; earlier are: a",
        ),
    ],
)
def test_what_is_no_recipe_is_named(recipe, message):
    with pytest.raises(RecipeError, match=message):
        read_plan(OmegaConf.create(recipe))


def test_a_checkpoint_to_resume_from_is_none_of_a_recipes(tmp_path):
    with pytest.raises(RecipeError, match=r"resume=a\.ckpt: a recipe goes on by itself"):
        read_plan(OmegaConf.create(TWO_TEACHERS), ["resume=a.ckpt"])
    with pytest.raises(RecipeError, match="letters, digits"):
        _commands(TWO_TEACHERS, [], tmp_path / "a folder")


def test_the_experiment_follows_its_recipe_and_takes_edits(tmp_path):
    teacher = 'recipe.teacher.overrides=["decoder=autoregressive_mini","refinement=greedy"]'
    edits = [teacher, "~recipe.steps_8", "seed=3"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=flickr8k", *edits])
        told = _commands(cfg.recipe, ["experiment=flickr8k", *edits], tmp_path)
        assert "decoder=autoregressive_mini" in told["teacher"] and "steps_8" not in told
        trained = [name for name, command in told.items() if command[0] == "train"]
        assert trained == ["sight", "teacher", "taught", "reinforced"]
        for command in told.values():
            if command[0] == "train":
                stage = compose("train", overrides=command[1:-1])
                assert stage.recipe is None and stage.seed == 3 and stage.name == "flickr8k"
        with pytest.raises(Exception, match="teachr"):
            compose("train", overrides=["experiment=flickr8k", "recipe.teachr.overrides=[]"])


def _begun(run, recipe, given=(), finished=True):
    record = Record(run)
    for stage in read_plan(OmegaConf.create(recipe), given):
        (run / stage.folder).mkdir(parents=True)
        record.begin(stage)
        record.end(stage, 1.5, finished)
    return record


def test_the_same_command_finds_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {name: TWO_TEACHERS[name] for name in ("first", "second")}
    _begun(tmp_path / "runs/x/2026-01-01", first, ["trainer.max_epochs=1"])
    for recipe, given, found in (
        (TWO_TEACHERS, ["trainer.max_epochs=1"], "2026-01-01"),  # later stages were not begun: they may be new
        (TWO_TEACHERS, ["trainer.max_epochs=2"], "new"),
        ({"first": TWO_TEACHERS["second"]}, ["trainer.max_epochs=1"], "new"),
        ({"first": {"job": "nothing"}}, [], "new"),
    ):
        assert recipe_folder("x", OmegaConf.create(recipe), given, "new") == found


def test_a_stage_of_another_command_or_an_older_teacher_is_refused(tmp_path):
    record = _begun(tmp_path, TWO_TEACHERS)
    plan = read_plan(OmegaConf.create(TWO_TEACHERS), ["trainer.max_epochs=3"])
    complaint = record.complaint(plan[0])
    assert "trainer.max_epochs=3" in complaint and f"remove {tmp_path}/01_first" in complaint
    plan = read_plan(OmegaConf.create(TWO_TEACHERS))
    assert not any(record.complaint(stage) for stage in plan) and all(map(record.is_finished, plan))
    record.begin(plan[0])
    record.end(plan[0], 1.0, True)
    assert Record(tmp_path).minutes(plan[0]) == 2.5
    assert "'first' was done anew" in record.complaint(plan[2]) and not record.complaint(plan[1])
    (tmp_path / plan[2].folder).rmdir()
    assert not record.complaint(plan[2]) and not record.is_finished(plan[2])


def test_every_job_is_a_command():
    from fastcap.cli import COMMANDS

    assert {job.command[0] for job in JOBS.values()} <= set(COMMANDS)
