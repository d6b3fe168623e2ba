"""Checkpoint files that are whole or absent, on a disk or an object store.

Lightning writes a checkpoint in place: a process that is killed meanwhile leaves half of the only one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning.pytorch.plugins import CheckpointIO

from fastcap.utils.errors import UserError
from fastcap.utils.files import atomic_write


class CheckpointWriteError(UserError):
    """A checkpoint that could not be written; the message names the file and the reason."""


class AtomicCheckpointIO(CheckpointIO):
    """Write checkpoints whole or not at all.

    On a disk the new file is written beside the old one (``NAME.part``), forced to the disk, and takes its name by a
    rename: whoever is killed at whatever moment leaves the old file or the new one. ``PREVIOUS`` names what the
    replaced ``last.ckpt`` is kept as, in case that the disk itself loses the newer one. A URL that fsspec knows
    (``s3://...``, ``memory://...``) is written under another name and moved.
    """

    PREVIOUS = "previous.ckpt"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointWriteError: If it cannot be written; the one before it stays as it was.
        """
        try:
            if is_url(path):
                _save_url(checkpoint, str(path))
            else:
                _save_file(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointWriteError(
                f"{path}: the checkpoint cannot be written ({_reason(error)}); the one before it is as it was"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU."""
        with fsspec.open(str(path), "rb") as file:
            checkpoint: dict[str, Any] = torch.load(
                file, map_location=map_location or "cpu", weights_only=weights_only is not False
            )
            return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint if it is there."""
        files, name = fsspec.core.url_to_fs(str(path))
        if files.exists(name):
            files.rm(name)


def is_url(path: str | Path) -> bool:
    """Whether a path is for fsspec, not for the disk."""
    return "://" in str(path)


def join(folder: str | Path, name: str) -> str:
    """Name a file in a folder or below a URL."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def _save_file(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as part:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        if path.name == "last.ckpt" and path.exists():
            _keep(path, path.with_name(AtomicCheckpointIO.PREVIOUS))


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, which it keeps when its own goes to another; no bytes are copied."""
    link = name.with_name(name.name + ".part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links: last.ckpt alone, as safe by the rename
        return
    os.replace(link, name)


def _save_url(checkpoint: dict[str, Any], url: str) -> None:
    files, name = fsspec.core.url_to_fs(url)
    part = name + ".part"
    files.makedirs(files._parent(name), exist_ok=True)
    try:
        with files.open(part, "wb") as file:
            torch.save(checkpoint, file)
        files.mv(part, name)
    except BaseException:
        if files.exists(part):
            files.rm(part)
        raise


def _reason(error: BaseException) -> str:
    """The disk's own words, which torch wraps in others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
