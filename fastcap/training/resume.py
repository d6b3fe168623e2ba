"""Where a run goes on: its last good checkpoint, the run that did not finish, and nobody else in its folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning.pytorch.utilities import rank_zero_only

from fastcap.training.files import AtomicCheckpointIO, is_url, join
from fastcap.utils.errors import UserError

log = logging.getLogger(__name__)

NEWEST_FIRST = ("last.ckpt", AtomicCheckpointIO.PREVIOUS, "best.ckpt")
LOCK_FILE = ".running"


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


class FolderInUseError(UserError):
    """A run folder that another process writes to."""


def open_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read any checkpoint of Lightning's without unpickling code.

    Raises:
        CheckpointError: If the file is missing or unreadable.
    """
    if not _exists(path):
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with fsspec.open(str(path), "rb") as file:
            checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    return checkpoint


def last_good(folder: Path | str) -> str | None:
    """Find the newest readable checkpoint of a folder (or URL), saying what was passed over.

    Returns:
        Its path; None if there is no checkpoint at all.

    Raises:
        CheckpointError: If there are some, and none can be read.
    """
    paths = [path for name in NEWEST_FIRST if _exists(path := join(folder, name))]
    error: CheckpointError | None = None
    for path in paths:
        try:
            open_checkpoint(path)
            return path
        except CheckpointError as bad:
            error = bad
            log.warning("%s: looking for an older one", bad)
    if error:
        raise CheckpointError(f"{folder}: none of its {len(paths)} checkpoints can be read; the last tried: {error}")
    return None


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
    """Hold a run's folder, as its first process; the system lets go of it when the process ends, however it ends.

    Raises:
        FolderInUseError: If another run holds it.
    """
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


def _exists(path: Path | str) -> bool:
    if not is_url(path):
        return Path(path).is_file()
    files, name = fsspec.core.url_to_fs(str(path))
    return bool(files.exists(name))
