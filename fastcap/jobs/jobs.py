"""One job of a sweep: skipped when it is finished, continued when it stopped, recorded when it fails."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcap.build import ConfigError
from fastcap.training import differences, last_good
from fastcap.training.checkpoints import CheckpointError
from fastcap.utils.files import write_json

log = logging.getLogger(__name__)

CONFIG_FILE = "job.json"
FAILURE_FILE = "failed.json"
_SAYS_NOTHING = ("resume", "sweep_name", "logger", "callbacks")  # what is trained does not depend on them

Train = Callable[[DictConfig], dict[str, float]]


def run_job(cfg: DictConfig, folder: Path, train: Train) -> dict[str, float] | None:
    """Bring one job to its end.

    Args:
        cfg: Its configuration.
        folder: Its folder.
        train: Trains by a configuration, whose ``resume`` is the job's own last checkpoint where there is one.

    Returns:
        Its metrics; None when it failed, as ``failed.json`` in its folder then says.
    """
    failure = folder / FAILURE_FILE
    try:
        config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        _same_job(folder, {key: value for key, value in config.items() if key not in _SAYS_NOTHING})
        done = _finished(folder)
        if done is not None:
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
    """Record the job's configuration, or make sure that it is the recorded one.

    Raises:
        ConfigError: If the folder is another job's.
    """
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


def _finished(folder: Path) -> dict[str, float] | None:
    try:
        metrics = json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {name: float(value) for name, value in metrics.items()}


def _last_good(checkpoints: Path) -> str | None:
    try:
        return last_good(checkpoints)
    except CheckpointError as error:
        log.warning("%s; the job starts over", error)
        return None
