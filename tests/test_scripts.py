"""scripts/recipe.sh: its stages compose, are skipped once finished, and end the script where they fail."""

import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fastcap.build import CONFIG_DIR

SCRIPT = Path(CONFIG_DIR).parent / "scripts/recipe.sh"
# In the place of Python: writes its arguments down and leaves what the command would.
STUB = """#!/usr/bin/env bash
[ "$FAIL" = "" ] || case "$*" in *"$FAIL"*) exit 3;; esac
printf '%s\\t' "${@:3}" >> "$RECORD"; echo >> "$RECORD"
for last; do
  folder=${last#hydra.run.dir=}
  [ "$folder" = "$last" ] || { mkdir -p "$folder"; touch "$folder/results.json"; }
done
"""


def _run(folder, *arguments, fail=""):
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/python").write_text(STUB)
    (folder / "bin/python").chmod(0o755)
    script = folder / "scripts/recipe.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT.read_text())
    record = folder / "record.txt"
    record.write_text("")
    environment = {**os.environ, "RECORD": str(record), "FAIL": fail, "RUN": "runs/it"}
    environment["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(["bash", script, *arguments], env=environment, capture_output=True, text=True, check=False)
    return done, [line.rstrip("\t").split("\t") for line in record.read_text().splitlines()]


def test_the_stages_run_once_and_in_order(tmp_path):
    done, commands = _run(tmp_path, "trainer.max_epochs=1", fail="stage=student")
    assert done.returncode == 3
    assert [command[0] for command in commands] == ["train", "train", "eval"]
    done, commands = _run(tmp_path, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert [command[0] for command in commands] == ["train", *["eval"] * 8], "what was finished is skipped"
    assert "stage=student" in commands[0] and "resume=last" in commands[0] and "trainer.max_epochs=1" in commands[0]
    done, commands = _run(tmp_path, "trainer.max_epochs=1")
    assert done.returncode == 0 and commands == []


@pytest.mark.parametrize("experiment", ["photographs", "coco_base"])
def test_every_stage_composes_and_starts_from_the_one_before(tmp_path, monkeypatch, experiment):
    monkeypatch.setenv("EXPERIMENT", experiment)
    _, commands = _run(tmp_path, "data.batch_size=7")
    stages = {}
    for command in commands:
        if command[0] == "train":
            overrides = [argument for argument in command[1:] if not argument.startswith("hydra.")]
            with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
                cfg = compose("train", overrides=overrides)
            assert cfg.data.batch_size == 7 and cfg.name == experiment
            stages[Path(command[-1]).name] = cfg
    assert list(stages) == ["concepts", "teacher", "student"]
    assert stages["teacher"].init.captioner == "runs/it/concepts/checkpoints/last.ckpt"
    assert stages["student"].init.captioner == "runs/it/teacher/checkpoints/best.ckpt"
    assert "Autoregressive" in stages["teacher"].decoder._target_ and "MoE" in stages["student"].decoder._target_
    assert stages["concepts"].objective.token_weight == 0 < stages["student"].objective.token_weight
    assert len(stages["student"].data.distilled_captions) == 1
