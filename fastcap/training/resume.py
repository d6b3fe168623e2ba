"""Where a run goes on: its last good checkpoint, the run that did not finish, and nobody else in its folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fastcap.training.checkpoints import CheckpointError, join, last_good, open_checkpoint
from fastcap.utils.errors import UserError

log = logging.getLogger(__name__)

# Groups that weights and the optimiser's state were made by; all others (trainer, data, objective, ...) may change.
FIXED = ("alignment", "backbone", "concepts", "data.max_length", "decoder", "init", "length", "optim", "tokenizer")
LOCK_FILE = ".running"


class FolderInUseError(UserError):
    """A run folder that another process writes to."""


def settle_resume(cfg: DictConfig, run_dir: Path) -> tuple[DictConfig, dict[str, Any] | None]:
    """Turn ``resume``, a file, a run's folder or ``last``, into the checkpoint to go on from, and open it.

    ``last`` is this run's own last good checkpoint, and nothing where there is none yet: the same command then starts a
    run and goes on with it.

    Returns:
        The configuration with the checkpoint's path, and what it holds; None where a run starts anew.

    Raises:
        CheckpointError: If there are checkpoints, and none can be read; if a setting differs that the checkpoint fixes.
    """
    if not cfg.resume:
        return cfg, None
    resume, found = str(cfg.resume), None
    if resume == "last":
        folder = OmegaConf.select(cfg, "callbacks.checkpoint.dirpath") or join(run_dir, "checkpoints")
        found = last_good(folder)
        log.info("resume=last: %s", f"goes on from {found[0]}" if found else f"no checkpoint in {folder}, a new start")
    elif not Path(resume).is_dir():
        found = resume, open_checkpoint(resume)
    elif (found := last_good(Path(resume) / "checkpoints")) is None:
        raise CheckpointError(f"{resume}/checkpoints: no checkpoint to go on from")
    path, checkpoint = found or (None, None)
    if path and checkpoint:
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        check_settings(path, checkpoint.get("fastcap", {}).get("config", config), config)
    return OmegaConf.merge(cfg, {"resume": path}), checkpoint  # type: ignore[return-value]


def check_settings(path: Path | str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Make sure that a resumed run changes nothing that its checkpoint fixes: the model, and the optimiser's state.

    Args:
        path: The checkpoint.
        old: The configuration it was trained with.
        new: That of the run that goes on from it; a ``CheckpointError`` names what it changes.
    """
    if changed := [text for text in differences(old, new) if text.startswith(FIXED)]:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise CheckpointError(
            f"resume cannot change {changed[0]}{more}: leave it as it was, or start a new run from the weights with "
            f"init.captioner={path}"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Values that two configurations do not share: ``key: OLD, now NEW``."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before}, now {after}")
    return found


def unfinished_run(runs: Path) -> Path | None:
    """Find the newest run in a folder of runs that has a checkpoint, no results, and no process writing to it."""
    for folder in sorted(runs.glob("*"), reverse=True):
        if any((folder / "checkpoints").glob("*.ckpt")) and not (folder / "results.json").exists():
            try:
                with only_writer(folder):
                    return folder
            except FolderInUseError:
                continue
    return None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder, as its first process, until that ends; ``FolderInUseError`` where another run holds it."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"{folder}: another run is writing to this folder") from error
        except OSError as error:  # a file system without locks
            log.debug("%s: not guarded (%s)", folder, error)
        yield
