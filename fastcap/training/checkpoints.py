"""Checkpoints of captioners: which one is meant, what it holds, and how a new model starts from some."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.data import CaptionTokenizer
from fastcap.model import FastCap
from fastcap.training import CheckpointError, last_good, open_checkpoint

log = logging.getLogger(__name__)

FORMAT_VERSION = 2  # raised when the same configuration comes to mean another network
RUNS_DIR = Path("runs")


def find_checkpoint(name: str | Path | None, runs: Path = RUNS_DIR) -> Path | str:
    """Find the checkpoint meant: a path; ``last``, the newest run's last good one; None, the newest run's best.

    Raises:
        CheckpointError: If there is none.
    """
    if name is None:
        return newest_checkpoint(runs)
    if str(name) != "last":
        return name
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
    """Read a captioner's checkpoint without unpickling code.

    Raises:
        CheckpointError: If the file is missing, unreadable, or not FastCap's.
    """
    checkpoint = open_checkpoint(path)
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


def start_from(model: FastCap, paths: Path | str | Sequence[Path | str], tokenizer: CaptionTokenizer) -> None:
    """Fill a new model with all that fits of another captioner's checkpoint, of the same vocabulary.

    The autoregressive twin is a start for ``MoEDecoder`` and the other way round: what a decoder has for itself alone
    (the code of the distance from the caption's end) stays as initialised.

    Several checkpoints of one configuration, trained from one start with other seeds, are averaged weight by weight: a
    model soup (Wortsman et al. 2022, arXiv 2203.05482), which generalises like their ensemble at the cost of one.

    Raises:
        CheckpointError: If a checkpoint is unusable or of another vocabulary, or some differ in their tensors.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    theirs = average(paths, [_model_state(path, tokenizer) for path in paths])
    own = model.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    others = ", ".join(sorted(own.keys() - fitting.keys())) or "none"
    places = ", ".join(map(str, paths))
    log.info("started from %s: %d of %d tensors; new: %s", places, len(fitting), len(own), others)


def average(paths: Sequence[Path | str], states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Take the mean of each floating-point tensor; of others (counts, flags) the first checkpoint's.

    Args:
        paths: Where the tensors come from, to be named in errors.
        states: As many sets of tensors, by name.

    Raises:
        CheckpointError: If there is none, or their names or shapes differ.
    """
    if not states:
        raise CheckpointError("init.captioner: names no checkpoint")
    first = states[0]
    for path, other in zip(paths, states, strict=True):
        differ = {k for k in first.keys() | other.keys() if _shape(first, k) != _shape(other, k)}
        if differ:
            raise CheckpointError(
                f"init.captioner: {path}: field `state_dict.model.{min(differ)}` is not as in {paths[0]}: only "
                "checkpoints of one configuration can be averaged"
            )
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point() and len(states) > 1
        else value
        for name, value in first.items()
    }


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _model_state(path: Path | str, tokenizer: CaptionTokenizer) -> dict[str, Tensor]:
    """Read a captioner's tensors, of this vocabulary."""
    checkpoint = read_checkpoint(path)
    if CaptionTokenizer.from_json(checkpoint["fastcap"]["tokenizer"]).fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"init.captioner: {path}: field `fastcap.tokenizer` is another vocabulary than this run's"
        )
    return model_state(checkpoint)


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the captioner's own tensors out of what ``read_checkpoint`` read, by their names in the model."""
    return {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
