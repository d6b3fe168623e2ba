"""Run folders, read from their files alone: ``results.json``, ``failed.json``, ``.hydra/overrides.yaml``."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastcap.utils.errors import UserError

log = logging.getLogger(__name__)

_NO_DIFFERENCE = re.compile(r"~?(logger|callbacks|hydra)\b")
_MARKS = ("results.json", "failed.json", "metrics.csv", ".hydra/overrides.yaml")


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    overrides: Mapping[str, str] = field(default_factory=dict)  # values by key, as given on the command line
    results: Mapping[str, Any] = field(default_factory=dict)  # of results.json; empty for a run that did not finish
    error: str = ""  # what ended a sweep's job, by its failed.json

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
        """One of "finished", "failed" and "unfinished"."""
        return "finished" if self.results else "failed" if self.error else "unfinished"


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Read the runs at or below folders, each once, in order of their names (jobs of a sweep by number).

    A folder that does not exist or holds no run is a ``UserError``.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
        below = list(_walk(path, set()))
        if not below:
            raise UserError(f"{path}: no run in this folder (a run holds {', '.join(_MARKS)})")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in sorted(found.values(), key=_natural)]


def read_run(path: Path) -> Run:
    """Read one run folder; a file that is absent or half-written counts as not there."""
    results, failure = (_read(path / name, json.loads) for name in ("results.json", "failed.json"))
    overrides = _read(path / ".hydra" / "overrides.yaml", yaml.safe_load)
    listed = [str(o).lstrip("+").partition("=") for o in overrides] if isinstance(overrides, list) else []
    return Run(
        path,
        {key: value for key, _, value in listed},
        results if isinstance(results, dict) else {},
        str(failure.get("error", "")) if isinstance(failure, dict) else "",
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys whose overrides differ between runs, in order of appearance; how a run logs makes no difference."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides if not _NO_DIFFERENCE.match(key))
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def _walk(path: Path, above: set[Path]) -> Iterator[Path]:
    """Yield run folders; links are followed, unless they lead back to a folder above."""
    real = path.resolve()
    if real in above:
        return
    if any((path / mark).is_file() for mark in _MARKS):
        yield path
        return
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            yield from _walk(folder, {*above, real})


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in path.parts]


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("%s left out: %s", path, str(error).splitlines()[0])
        return None
