"""Jobs of a sweep: named by what varies, skipped when finished, continued when stopped, recorded when they fail."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fastcap.build import ConfigError
from fastcap.reporting.runs import Run, differing, find_runs, read_run
from fastcap.reporting.tables import markdown_table
from fastcap.training.checkpoints import CheckpointError, last_good
from fastcap.training.loggers import short_name
from fastcap.training.resume import differences
from fastcap.utils.files import write_json, write_rows

log = logging.getLogger(__name__)

_LONGEST = 100
CONFIG_FILE = "job.json"
FAILURE_FILE = "failed.json"
_NOT_TRAINED_BY = ("resume", "sweep_name", "logger", "callbacks")  # what is trained does not depend on them
COLUMNS = {"val/cider": "CIDEr-D", "val/bleu4": "BLEU-4", "val/loss": "val/loss"}

Train = Callable[[DictConfig], dict[str, float]]


def job_folder(name: str | None, number: int | str, sweep: str, overrides: Sequence[str]) -> str:
    """Name a job's folder below the sweep's, which holds ``multirun.yaml``.

    Where the sweep has a name it is the values that it varies, such as ``decoder-dense_lr-0.001``, else the number.
    """
    return value_name(swept(Path(sweep), overrides)) if name else str(number)


def value_name(overrides: Sequence[str]) -> str:
    """Turn overrides into a file name of plain letters, which needs no quotes in Hydra's ``ckpt=PATH`` either."""
    text = short_name(sorted(overrides))
    plain = re.sub(r"[^\w.+-]", "", text.replace("=", "-").replace(" ", "_"))[:_LONGEST]
    if re.sub(r"[^\w.+=\s-]", "", text) == text and len(text) <= _LONGEST:
        return plain or "job"
    return f"{plain}-{hashlib.sha256(' '.join(sorted(overrides)).encode()).hexdigest()[:8]}"


def swept(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """Those of a job's overrides that its sweep varies, by the sweep's ``multirun.yaml``."""
    written = sweep / "multirun.yaml"
    if not written.is_file():
        return list(overrides)
    hydra = OmegaConf.load(written).hydra
    varied = set(OmegaConf.select(hydra, "sweeper.params") or {})
    parser = OverridesParser.create()
    given = parser.parse_overrides([str(task) for task in hydra.overrides.task])
    varied |= {override.get_key_element() for override in given if override.is_sweep_override()}
    return [override for override in overrides if override.partition("=")[0] in varied]


def swept_first(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """A job's overrides, with those first that its sweep varies."""
    first = swept(sweep, overrides)
    return first + [override for override in overrides if override not in first]


def run_job(cfg: DictConfig, folder: Path, train: Train) -> dict[str, float] | None:
    """Bring one job to its end; returns its metrics, or None when it failed, as its ``failed.json`` then says.

    Args:
        cfg: Its configuration.
        folder: Its folder.
        train: Trains by a configuration, whose ``resume`` is the job's own last checkpoint where there is one.
    """
    failure = folder / FAILURE_FILE
    try:
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        _same_job(folder, {key: value for key, value in config.items() if key not in _NOT_TRAINED_BY})
        if done := read_run(folder).metrics:
            log.info("%s: finished before, not trained again", folder.name)
            return done
        failure.unlink(missing_ok=True)
        last = _last_good(folder / "checkpoints")
        if last:
            log.info("%s: goes on from %s", folder.name, last)
            cfg = OmegaConf.merge(cfg, {"resume": last})  # type: ignore[assignment]
        return train(cfg)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__  # type: ignore[assignment]
        text = f"{type(cause).__name__}: {cause}"
        log.error("%s: failed: %s", folder.name, text.splitlines()[0])
        write_json(failure, {"error": text, "traceback": traceback.format_exc()})
        return None


def _same_job(folder: Path, config: dict[str, Any]) -> None:
    """Record the job's configuration; raises ``ConfigError`` where the folder is another job's."""
    path = folder / CONFIG_FILE
    config = json.loads(json.dumps(config))
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        return
    if changed := differences(known, config):
        shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ConfigError(f"{path}: this folder is another job's ({shown}): give the sweep another name or folder")


def _last_good(checkpoints: Path) -> str | None:
    try:
        return (last_good(checkpoints) or (None,))[0]
    except CheckpointError as error:
        log.warning("%s; the job starts over", error)
        return None


class SweepSummary(Callback):
    """Hydra's callback around a sweep: a table, and ``sweep.csv`` in its folder at the end.

    It ends the process with status 1 and the jobs' names when jobs failed.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``multirun.yaml``, which job folders are named by; not every sweeper does."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum the sweep up."""
        folder = Path(config.hydra.sweep.dir)
        failed = summarise(folder)
        for name, error in failed.items():
            print(f"fastcap: error: {folder / name}: {error.splitlines()[0]}", file=sys.stderr)
        if failed:
            message = f"fastcap: error: {len(failed)} failed: {', '.join(failed)}; the same command tries again"
            print(message, file=sys.stderr)
            sys.exit(1)


def summarise(folder: Path) -> dict[str, str]:
    """Print a sweep's table and write ``sweep.csv``; returns the error of each failed job, by its folder's name."""
    runs = [run for run in find_runs([folder]) if run.path.parent == folder]
    keys = differing(runs)
    failed = {run.path.name: run.error for run in runs if run.error and not run.results}
    runs.sort(key=lambda run: -run.metrics.get("val/cider", float("-inf")))
    rows = [_row(run, keys) for run in runs]
    print(f"\n{folder}: {sum(bool(run.results) for run in runs)} of {len(runs)} jobs finished\n")
    print(markdown_table([{k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]))
    write_rows(folder / "sweep.csv", rows)
    print(f"Sweep       {folder / 'sweep.csv'}")
    return failed


def _row(run: Run, keys: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"job": run.path.name} | {key: run.overrides.get(key, "") for key in keys}
    row["status"] = run.status
    row |= {title: run.metrics.get(name, "") for name, title in COLUMNS.items()}
    return row | {"steps": run.results.get("steps", ""), "minutes": run.results.get("minutes", "")}


# A sweep's folder: as asked for, else one that no other sweep has.
OmegaConf.register_new_resolver(
    "fastcap.sweep_folder", lambda name, now, run_id: str(name or f"{now}_{run_id}"), replace=True
)
OmegaConf.register_new_resolver("fastcap.job_folder", job_folder, replace=True)
