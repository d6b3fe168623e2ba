"""Run folders, read from their files alone: `metrics.csv`, `results.json`, `.hydra/*.yaml`, `samples/`."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastcap.reporting.history import Point, read_history
from fastcap.utils.errors import UserError

log = logging.getLogger(__name__)

LIVELY = 300  # seconds since the last written file within which a run without results counts as running
_TRIVIAL = re.compile(r"~?(logger|callbacks|hydra)\b")
_MARKS = ("metrics.csv", "results.json", ".hydra/config.yaml", ".hydra/overrides.yaml")


class RunFolderError(UserError, ValueError):
    """A folder that holds no run; the message names it."""


@dataclass
class Run:
    """One run folder.

    Attributes:
        path: The folder.
        overrides: Values by key, as given on the command line.
        config: The composed configuration, unresolved.
        results: What ``results.json`` holds; empty for a run that did not finish.
        history: Logged values by metric, in the file's order.
        written: When a file of the folder was last written, in seconds since 1970.
        error: What ended a sweep's job, by its ``failed.json``.
    """

    path: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    written: float = 0.0
    error: str = ""

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that the run is a job of."""
        return self.path.parent if (self.path.parent / "multirun.yaml").is_file() else None

    @property
    def is_evaluation(self) -> bool:
        """Whether a checkpoint was scored here and nothing was trained."""
        return "ckpt" in self.results or ("ckpt" in self.config and "optim" not in self.config)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best checkpoint; those of an evaluation's split stand under ``val/`` too."""
        logged = self.results.get("metrics")
        numbers = logged.items() if isinstance(logged, dict) else ()
        found = {name: float(value) for name, value in numbers if isinstance(value, int | float)}
        prefix = f"{self.results.get('split')}/"
        return {f"val/{k.removeprefix(prefix)}": v for k, v in found.items() if k.startswith(prefix)} | found

    @property
    def status(self) -> str:
        """One of "finished", "diverged", "running", "unfinished", "failed" (it says so, or nothing was ever logged)."""
        if self.results:
            return "finished"
        if self.error:
            return "failed"
        losses = self.history.get("train/loss") or ()
        if losses and not math.isfinite(losses[-1].value):
            return "diverged"
        if time.time() - self.written < LIVELY:
            return "running"
        return "unfinished" if self.history else "failed"

    @property
    def progress(self) -> str:
        """Epochs done of those asked for, where known."""
        trainer = self.config.get("trainer")
        wanted = trainer.get("max_epochs") if isinstance(trainer, dict) else None
        done = max((p.epoch + 1 for p in self.history.get("val/cider", ())), default=0)
        return f"{done} of {wanted} epochs" if isinstance(wanted, int) and wanted > 0 else f"{done} epochs"

    def best(self, metric: str, highest: bool = True) -> Point | None:
        """The best logged value of a metric."""
        points = [p for p in self.history.get(metric, ()) if math.isfinite(p.value)]
        return (max if highest else min)(points, key=lambda p: p.value, default=None)

    def last(self, metric: str) -> float | None:
        """The last logged value of a metric."""
        points = self.history.get(metric)
        return points[-1].value if points else None

    def samples(self) -> list[Path]:
        """The newest picture of each kind in ``samples/``; ``epoch_003.png`` and ``epoch_004.png`` are one kind."""
        newest: dict[str, Path] = {}
        for path in sorted((self.path / "samples").glob("*.png")):
            newest[re.sub(r"\d+", "#", path.stem)] = path
        return list(newest.values())


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Read the runs at or below folders, each once, in order of their names (jobs of a sweep by number).

    Raises:
        RunFolderError: If a folder does not exist or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        below = list(_walk(path))
        if not below:
            raise RunFolderError(f"{path}: no run in this folder (a run holds metrics.csv, results.json or .hydra/)")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in sorted(found.values(), key=_natural)]


def read_run(path: Path) -> Run:
    """Read one run folder; a file that is absent or half-written counts as not there."""
    results = _json(path / "results.json")
    config = _yaml(path / ".hydra" / "config.yaml")
    overrides = _yaml(path / ".hydra" / "overrides.yaml")
    failure = _json(path / "failed.json")
    listed = [str(o).lstrip("+").partition("=") for o in overrides] if isinstance(overrides, list) else []
    times = [entry.stat().st_mtime for entry in os.scandir(path)]
    return Run(
        path,
        {key: value for key, _, value in listed},
        config if isinstance(config, dict) else {},
        results if isinstance(results, dict) else {},
        read_history(path / "metrics.csv"),
        max(times, default=0.0),
        str(failure.get("error", "")) if isinstance(failure, dict) else "",
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys whose overrides differ between runs, in order of appearance; how a run logs makes no difference."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides if not _TRIVIAL.match(key))
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """Name each run by the overrides that tell it from the others, by its folder too where these do not suffice."""
    keys = differing(runs)
    named = [" ".join(f"{key}={run.overrides[key]}" for key in keys if key in run.overrides) for run in runs]
    own = [run.path.name if not run.sweep else f"{run.path.parent.name}/{run.path.name}" for run in runs]
    return [
        text if text and named.count(text) == 1 else f"{text} · {folder}" if text else folder
        for text, folder in zip(named, own, strict=True)
    ]


def num_jobs(sweep: Path) -> int | None:
    """Jobs that a sweep was to have, where its ``multirun.yaml`` lists plain choices: ``a=1,2 b=[1],[3]`` are four."""
    content = _yaml(sweep / "multirun.yaml")
    try:
        tasks = [str(task) for task in content["hydra"]["overrides"]["task"]]
    except (KeyError, TypeError):
        return None
    values = [re.sub(r"\[[^][]*\]|'[^']*'|\"[^\"]*\"", "", task.partition("=")[2]) for task in tasks]
    if any(set(value) & set("([{'\"") for value in values):
        return None
    return math.prod(value.count(",") + 1 for value in values)


def _walk(path: Path) -> Iterable[Path]:
    if any((path / mark).is_file() for mark in _MARKS):
        yield path
        if not (path / "recipe.json").is_file():  # whose stages are runs in folders below
            return
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
            yield from _walk(folder)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s left out: %s", path, error)
        return None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s left out: %s", path, str(error).splitlines()[0])
        return None
