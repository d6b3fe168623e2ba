"""Find and read the checkpoints of captioners, and start new models from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.model import FastCap
from fastcap.pretrained import WEIGHTS, read_weights
from fastcap.training import CheckpointError, last_good, open_checkpoint
from fastcap.training.files import is_url
from fastcap.utils.models import PRETRAINED, SHIPPED, find_model

log = logging.getLogger(__name__)

FORMAT_VERSION = 3  # raised when configurations or weights of earlier versions no longer load
RUNS_DIR = Path("runs")


def find_checkpoint(name: str | Path | None, runs: Path = RUNS_DIR) -> Path | str:
    """Find the checkpoint meant.

    Args:
        name: A file; a run's folder, for its best one; ``last``, for the newest run's last good one; ``pretrained``,
            for the weights that FastCap brings along; None for the newest run's best.
        runs: Where runs lie.

    Raises:
        CheckpointError: If there is none.
    """
    if name is None:
        return newest_checkpoint(runs)
    if str(name) == PRETRAINED:
        return SHIPPED / WEIGHTS
    if str(name) != "last":
        return name if is_url(name) else find_model(name)
    for folder in sorted(runs.glob("**/checkpoints"), key=lambda path: path.stat().st_mtime, reverse=True):
        if found := last_good(folder):
            return Path(found)
    raise CheckpointError(f"no checkpoint under {runs}/: train first (make train) or name one")


def newest_checkpoint(runs: Path = RUNS_DIR) -> Path:
    """Find the best checkpoint of the newest run.

    Raises:
        CheckpointError: If there is none.
    """
    found = sorted(runs.glob("**/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no checkpoint under {runs}/: train first (make train) or name one")
    return found[-1]


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a captioner's checkpoint without unpickling code. path: as in ``find_checkpoint``.

    Raises:
        CheckpointError: If the file is missing, unreadable, or not FastCap's.
        PretrainedError: If the weights that FastCap brings along are not those of their card.
    """
    path = find_checkpoint(path)
    checkpoint = read_weights(Path(path).parent) if Path(path).name == WEIGHTS else open_checkpoint(path)
    artifacts = checkpoint.get("fastcap") if isinstance(checkpoint, dict) else None
    if not isinstance(artifacts, dict) or not {"config", "tokenizer", "format_version"} <= artifacts.keys():
        raise CheckpointError(f"{path}: not a FastCap checkpoint (its field `fastcap` is missing or incomplete)")
    if artifacts["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: field `fastcap.format_version` is {artifacts['format_version']}, this version reads "
            f"{FORMAT_VERSION}"
        )
    return checkpoint


def check_resume(path: Path | str, tokenizer: CaptionTokenizer) -> None:
    """Make sure a checkpoint can be trained on with this vocabulary.

    Raises:
        CheckpointError: If it is unreadable or of another vocabulary.
    """
    checkpoint = read_checkpoint(path)
    theirs = CaptionTokenizer.from_json(checkpoint["fastcap"]["tokenizer"])
    if theirs.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{path}: field `fastcap.tokenizer` is another vocabulary ({theirs.vocab_size} words, this run "
            f"{tokenizer.vocab_size}): resume with the data and tokenizer it was trained with"
        )


def start_from(model: FastCap, path: Path | str, tokenizer: CaptionTokenizer) -> None:
    """Fill a new model with all that fits of another captioner's checkpoint, of the same vocabulary.

    The autoregressive baseline can start ``MoEDecoder`` and the other way round: what a decoder has for itself alone
    (the code of the distance from the caption's end) stays as initialised.

    Raises:
        CheckpointError: If the checkpoint is unusable or of another vocabulary.
    """
    checkpoint = read_checkpoint(path)
    if CaptionTokenizer.from_json(checkpoint["fastcap"]["tokenizer"]).fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"init.captioner: {path}: field `fastcap.tokenizer` is another vocabulary than this run's"
        )
    own = model.state_dict()
    fitting = {k: v for k, v in model_state(checkpoint).items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    others = ", ".join(sorted(own.keys() - fitting.keys())) or "none"
    log.info("started from %s: %d of %d tensors; new: %s", path, len(fitting), len(own), others)


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the captioner's own tensors out of what ``read_checkpoint`` read, by their names in the model."""
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
