"""Follow a recipe: every stage a process of its own, nothing twice."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from fastcap.cli import MODULES
from fastcap.recipes.plan import JOBS, RecipeError, Stage, read_plan
from fastcap.recipes.record import Record
from fastcap.recipes.summary import summarise
from fastcap.training import EXIT_STATUS, StopSignal, only_writer

log = logging.getLogger(__name__)

_PATIENCE = 30  # seconds that an interrupted stage has to end by itself

Runner = Callable[[list[str]], int]


def run_recipe(
    cfg: DictConfig, run_dir: Path, given: Sequence[str] = (), runner: Runner | None = None
) -> dict[str, float]:
    """Bring every stage to its end, one after the other; finished ones are skipped, stopped trainings go on.

    The folder then holds a folder for each stage, ``recipe.json`` (how far it is), ``results.json``, ``recipe.csv``
    (the table that is printed) and, of the last training, ``checkpoints/best.ckpt``.

    Args:
        cfg: The configuration, with the node ``recipe``.
        run_dir: The recipe's folder.
        given: What the command line overrides.
        runner: Runs a command line of ``fastcap`` and returns its status; a process for each where it is None.

    Returns:
        The metrics of the last training.

    Raises:
        RecipeError: If the recipe cannot be followed, or a stage fails.
    """
    if run_dir.is_relative_to(Path.cwd()):
        run_dir = run_dir.relative_to(Path.cwd())
    stages = read_plan(cfg.recipe, given)
    folders = {stage.name: run_dir / stage.folder for stage in stages}
    with only_writer(run_dir):
        record = Record(run_dir)
        commands = {stage.name: stage.command(_up_to(stage, stages, folders)) for stage in stages}
        _check(stages, commands)
        for stage in stages:
            if complaint := record.complaint(stage):
                raise RecipeError(f"stage {stage.name!r}: {complaint}")
            title = f"Stage {stage.number} of {len(stages)}, {stage.name}"
            if record.is_finished(stage):
                log.info("%s: finished before, in %s", title, folders[stage.name])
                continue
            log.info("%s: fastcap %s", title, shlex.join(commands[stage.name]))
            _bring_to_end(stage, commands[stage.name], folders[stage.name], record, runner or run_process)
        metrics = summarise(stages, run_dir, sum(map(record.minutes, stages)))
        for stage in [stage for stage in stages if stage.job == "train"][-1:]:
            _hand_over(folders[stage.name] / "checkpoints/best.ckpt", run_dir / "checkpoints/best.ckpt")
            print(
                f"Checkpoint  {run_dir / 'checkpoints/best.ckpt'} (of {folders[stage.name]})\n"
                f"Next        make caption PHOTO=photo.jpg   (or make eval, make demo, make export: they find it)"
            )
    return metrics


def run_process(command: list[str]) -> int:
    """Run a command line of ``fastcap`` in a process of its own, which is told what signals this one gets."""
    module = MODULES.get(command[0], command[0])
    process = subprocess.Popen([sys.executable, "-m", f"fastcap.{module}", *command[1:]])

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, pass_on) for number in StopSignal.SIGNALS} if main else {}
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal told the stage, too
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _up_to(stage: Stage, stages: Sequence[Stage], folders: dict[str, Path]) -> dict[str, Path]:
    return {other.name: folders[other.name] for other in stages[: stage.number]}


def _check(stages: Sequence[Stage], commands: dict[str, list[str]]) -> None:
    """Compose every training's configuration now: a typo in the last one costs no hours."""
    if not GlobalHydra.instance().is_initialized():
        return
    for stage in (stage for stage in stages if stage.job == "train"):
        overrides = commands[stage.name][len(JOBS[stage.job].command) :]
        try:
            GlobalHydra.instance().config_loader().load_configuration("train", overrides, RunMode.RUN)
        except Exception as error:
            reason = " ".join(line.strip() for line in str(error.__cause__ or error).splitlines())
            raise RecipeError(f"stage {stage.name!r}: {reason}") from error


def _bring_to_end(stage: Stage, command: list[str], folder: Path, record: Record, runner: Runner) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record.begin(stage)
    started, status = time.monotonic(), -1
    try:
        status = runner(command)
    finally:
        finished = status == 0 and (folder / JOBS[stage.job].output).is_file()
        record.end(stage, (time.monotonic() - started) / 60, finished)
    if finished:
        return
    if status == EXIT_STATUS:  # saved, and put back into Slurm's queue where that was asked for
        print(f"fastcap: recipe stopped in stage {stage.name!r}; the same command goes on with it", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    if status in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if status < 0:
        reason = f"was killed by {signal.Signals(-status).name}"
    else:
        reason = f"failed with status {status}" if status else f"left no {JOBS[stage.job].output}"
    raise RecipeError(
        f"stage {stage.name!r} {reason} (what it said stands above; its folder is {folder}); the same command goes on "
        "from there"
    )


def _hand_over(best: Path, place: Path) -> None:
    """Give the last training's checkpoint a second name where every command finds it; no bytes are copied."""
    if not best.is_file():
        raise RecipeError(f"{best}: the last training kept no best checkpoint")
    if place.exists() and place.samefile(best):  # renaming a file to another name of its own would leave both
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(best, part)
    except OSError:  # a file system without links
        shutil.copy2(best, part)
    os.replace(part, place)
