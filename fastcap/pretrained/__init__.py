"""The model that FastCap brings along (an ONNX file, weights to go on from, the card of both); where models lie."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from fastcap.utils.errors import UserError

PRETRAINED = "pretrained"
SHIPPED = Path(__file__).parent
WEIGHTS, CONFIG, CARD = "weights.safetensors", "config.json", "MODEL_CARD.md"
EXPORT_INDEX = "export.json"  # in an export's folder: what it holds


class PretrainedError(UserError):
    """The model that FastCap brings along is not as its card says."""


def find_model(name: str | os.PathLike[str] | None = None) -> Path:
    """Find the file that a path means.

    Args:
        name: A checkpoint or an ``.onnx`` file; a run's folder, which stands for its best checkpoint; an export's
            folder, which stands for the file that its index prefers; None or ``pretrained`` for the model that
            FastCap brings along.

    Returns:
        The file, or the path itself where it is nothing of this: whoever opens it says so.
    """
    if name is None or str(name) == PRETRAINED:
        return SHIPPED / "fastcap.onnx"
    path = Path(name)
    if (best := path / "checkpoints" / "best.ckpt").is_file():
        return best
    if path.is_dir():
        try:
            return path / Path(json.loads((path / EXPORT_INDEX).read_text(encoding="utf-8"))["default"]).name
        except (OSError, ValueError, KeyError, TypeError):
            found = sorted(path.glob("*.onnx")) or sorted(path.glob("*.ckpt"))
            if len(found) == 1:
                return found[0]
    return path


def verified(name: str, folder: Path = SHIPPED) -> Path:
    """Return the path of a file whose SHA-256 is the one on the card.

    Args:
        name: The file.
        folder: Where they lie.

    Raises:
        PretrainedError: If the file or the card is missing, or they differ.
    """
    path = folder / name
    try:
        known = card_hashes((folder / CARD).read_text(encoding="utf-8"))
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PretrainedError(
            f"{error.filename}: missing from this installation ({error.strerror}); install FastCap again, or name "
            "a model of your own"
        ) from error
    if known.get(name) != found:
        raise PretrainedError(
            f"{path}: its SHA-256 {found[:12]}... is not the card's ({CARD}: {known.get(name, 'none')[:12]}...); "
            "install FastCap again"
        )
    return path


def card_hashes(card: str) -> dict[str, str]:
    """Read each file's SHA-256 from the card's table."""
    return dict(re.findall(r"^\| `([\w.]+)` \|.*\b([0-9a-f]{64})\b", card, re.MULTILINE))


def read_weights(folder: Path = SHIPPED) -> dict[str, Any]:
    """Read the weights as ``fastcap.training.checkpoints.read_checkpoint`` returns a checkpoint.

    Raises:
        PretrainedError: If a file is missing or not the card's.
    """
    from safetensors.torch import load_file

    artifacts = json.loads(verified(CONFIG, folder).read_text(encoding="utf-8"))
    state = load_file(verified(WEIGHTS, folder))
    return {"fastcap": artifacts, "state_dict": {f"model.{name}": value for name, value in state.items()}}
