"""Checkpoint files: written whole or not at all, on a disk or an object store; found, read and checked.

Lightning's own writer moves a file from the system's temporary folder, which is a copy where that is another disk: a
process that is killed meanwhile leaves half of the only one.
"""

from __future__ import annotations

import logging
import os
import pickle
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor, nn

from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.model import FastCap
from fastcap.pretrained import PRETRAINED, SHIPPED, WEIGHTS, find_model, read_weights
from fastcap.utils.errors import UserError
from fastcap.utils.files import atomic_write

log = logging.getLogger(__name__)

FORMAT_VERSION = 4  # raised when configurations or weights of earlier versions no longer load
RUNS_DIR = Path("runs")
PREVIOUS = "previous.ckpt"  # what a replaced last.ckpt is kept as
NEWEST_FIRST = ("last.ckpt", PREVIOUS, "best.ckpt")
ALLOW = "FASTCAP_ALLOW"
# What the configuration inside a checkpoint may build, as one from elsewhere could name any program: classes of these
# modules, and functions of the second list, do nothing but build parts.
ALLOWED_CLASSES = (
    *(f"fastcap.{name}" for name in ("alignment", "backbone", "data", "decoder", "generation", "jobs")),
    *(f"fastcap.{name}" for name in ("losses", "metrics", "module", "optim", "training")),
    *(f"lightning.pytorch.{name}" for name in ("accelerators", "callbacks", "loggers", "plugins", "profilers")),
    *("lightning.pytorch.strategies", "lightning.pytorch.trainer", "torch.nn", "torch.optim"),
)
ALLOWED_FUNCTIONS = tuple(
    f"fastcap.{name}" for name in ("data.tokenizer", "optim", "training.log_wandb", "training.loggers")
)


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used or written; the message names the file and what is wrong."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints whole or not at all.

    On a disk the new file is written beside the old one (``NAME.part``), forced to the disk, and takes its name by a
    rename: whoever is killed at whatever moment leaves the old file or the new one. The replaced ``last.ckpt`` is kept
    as ``previous.ckpt``, in case that the disk itself loses the newer one. Lightning writes to URLs that fsspec knows
    (``s3://...``, ``memory://...``), in a transaction.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; raises ``CheckpointError`` where that fails, and the one before stays as it was."""
        try:
            if is_url(path):
                super().save_checkpoint(checkpoint, path, storage_options)
            else:
                _save_file(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: the checkpoint cannot be written ({_reason(error)}); the one before it is as it was"
            ) from error

    def load_checkpoint(self, path: str | Path, *options: Any, **more: Any) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, whatever Lightning's options are."""
        return open_checkpoint(path)


def is_url(path: str | Path) -> bool:
    """Whether a path is for fsspec, not for the disk."""
    return "://" in str(path)


def join(folder: str | Path, name: str) -> str:
    """Name a file in a folder or below a URL."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def open_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read any checkpoint of Lightning's, or the best of a run's folder, without unpickling code.

    A file that is missing or unreadable is a ``CheckpointError``.
    """
    path = path if is_url(path) else find_model(path)
    if not _exists(path):
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with fsspec.open(str(path), "rb") as file:
            checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose text is about an option that nobody here may set
            reason = "not a file of tensors and plain data"
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    return checkpoint


def last_good(folder: Path | str) -> tuple[str, dict[str, Any]] | None:
    """Find the newest readable checkpoint of a folder (or URL), saying what was passed over.

    Returns:
        Its path and what it holds; None if there is none. If there are, and none can be read: a ``CheckpointError``.
    """
    paths = [path for name in NEWEST_FIRST if _exists(path := join(folder, name))]
    error: CheckpointError | None = None
    for path in paths:
        try:
            return path, open_checkpoint(path)
        except CheckpointError as bad:
            error = bad
            log.warning("%s: looking for an older one", bad)
    if error:
        raise CheckpointError(f"{folder}: none of its {len(paths)} checkpoints can be read; the last tried: {error}")
    return None


def find_checkpoint(name: str | Path | None, runs: Path = RUNS_DIR) -> Path | str:
    """Find the checkpoint meant; raises ``CheckpointError`` where there is none.

    Args:
        name: A file; a run's folder, for its best one; ``last``, for the newest run's last good one; ``pretrained``,
            for the weights that FastCap brings along; None for the newest run's best.
        runs: Where runs lie.
    """
    if name is not None and str(name) != "last":
        if str(name) == PRETRAINED:
            return SHIPPED / WEIGHTS
        return name if is_url(name) else find_model(name)
    pattern = "**/checkpoints" if name else "**/checkpoints/best.ckpt"
    for path in sorted(runs.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True):
        if found := last_good(path) if name else (path, {}):
            return Path(found[0])
    raise CheckpointError(f"no checkpoint under {runs}/: train first (make train) or name one")


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a captioner's checkpoint, named as for ``find_checkpoint``, without unpickling code.

    Raises:
        CheckpointError: If the file is missing, unreadable or not FastCap's.
        PretrainedError: If the weights that FastCap brings along are not those of their card.
    """
    path = find_checkpoint(path)
    checkpoint = read_weights(Path(path).parent) if Path(path).name == WEIGHTS else open_checkpoint(path)
    check_captioner(path, checkpoint)
    return checkpoint


def check_captioner(path: Path | str, checkpoint: Any, tokenizer: CaptionTokenizer | None = None) -> None:
    """Make sure that an opened checkpoint is a captioner's of this version, and of the vocabulary that is given.

    Raises:
        CheckpointError: If not; the message names ``path``.
    """
    artifacts = checkpoint.get("fastcap") if isinstance(checkpoint, dict) else None
    if not isinstance(artifacts, dict) or not {"config", "tokenizer", "format_version"} <= artifacts.keys():
        raise CheckpointError(f"{path}: not a FastCap checkpoint (its field `fastcap` is missing or incomplete)")
    if artifacts["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: field `fastcap.format_version` is {artifacts['format_version']}, this version reads "
            f"{FORMAT_VERSION}"
        )
    if tokenizer:
        theirs = CaptionTokenizer.from_json(artifacts["tokenizer"])
        if theirs.to_json() != tokenizer.to_json():
            raise CheckpointError(
                f"{path}: field `fastcap.tokenizer` is another vocabulary ({theirs.vocab_size} words, this run "
                f"{tokenizer.vocab_size}): go on with the data and tokenizer it was trained with"
            )


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the captioner's own tensors out of what ``read_checkpoint`` read, by their names in the model."""
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}


def not_allowed(config: Any) -> str | None:
    """Find what a configuration would build that is neither FastCap's nor a package of the user's own choice.

    Packages named in the environment variable ``FASTCAP_ALLOW``, separated by commas, are allowed whole.

    Args:
        config: Plain data, with everything resolved.

    Returns:
        Where it is and what it names, for people; None if there is nothing.
    """
    chosen = tuple(filter(None, map(str.strip, os.environ.get(ALLOW, "").split(","))))
    for where, target in _targets(config, ""):
        if not (isinstance(target, str) and (_inside(target, chosen) or _known(target))):
            package = target.split(".")[0] if isinstance(target, str) else ""
            return f"{where}` is {target!r}, no part of FastCap; to allow it, set {ALLOW}={package}"
    return None


def _targets(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        inner = f"{where}.{key}" if where else str(key)
        if key == "_target_":
            yield inner, value
        else:
            yield from _targets(value, inner)


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _known(target: str) -> bool:
    """Tell whether a name leads to a part: where it is defined counts, not by which module's name it is reached."""
    if not _inside(target, (*ALLOWED_CLASSES, "lightning.Trainer")):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    modules = ALLOWED_CLASSES if isinstance(found, type) else ALLOWED_FUNCTIONS
    return _inside(getattr(found, "__module__", None) or "", modules)


def start_from(model: FastCap, path: Path | str) -> None:
    """Fill a new model with what another captioner's checkpoint holds for it, its concepts and n-grams included.

    The autoregressive baseline can start ``MoEDecoder`` and the other way round: the position codes, which
    each decoder has of its own, then stay as initialised.

    Raises:
        CheckpointError: If the checkpoint is unusable, or a tensor has another size than the model's.
    """
    given, own = model_state(read_checkpoint(path)), model.state_dict()
    given = {name: value for name, value in given.items() if name in own}
    for name, value in list(given.items()):
        if value.shape == own[name].shape or name.startswith(("alignment.concepts.", "ngrams.")):
            continue  # concepts and n-grams take on the sizes that they find
        if not name.startswith("decoder.from_"):
            raise CheckpointError(
                f"{path}: field `state_dict.model.{name}` is {tuple(value.shape)}, the new model's "
                f"{tuple(own[name].shape)}: start with the backbone, decoder and alignment that it was trained with"
            )
        del given[name]
    model.load_state_dict(given, strict=False)
    new = sorted({name.rpartition(".")[0] for name in own.keys() - given.keys() if ".net." not in name})
    log.info("started from %s; new: %s", path, ", ".join(new) or "nothing")


def fill(module: nn.Module, path: Path | str, state: Mapping[str, Tensor]) -> None:
    """Give a module the tensors of a checkpoint; a ``CheckpointError`` names its ``path`` where they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f"{path}: weights do not fit the configuration: {'; '.join(lines[:3])}") from error


def _exists(path: Path | str) -> bool:
    files, name = fsspec.core.url_to_fs(str(path))
    return bool(files.isfile(name))


def _save_file(checkpoint: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as part:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        if path.name == "last.ckpt" and path.exists():
            _keep(path, path.with_name(PREVIOUS))


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, which it keeps when its own goes to another; no bytes are copied."""
    link = name.with_name(name.name + ".part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links: last.ckpt alone, as safe by the rename
        return
    os.replace(link, name)


def _reason(error: BaseException) -> str:
    """The disk's own words, which torch wraps in others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
