"""The model that FastCap brings along: an ONNX file to caption with, weights to go on from, and the card of both."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fastcap.utils.errors import UserError
from fastcap.utils.models import SHIPPED

WEIGHTS, CONFIG, CARD = "weights.safetensors", "config.json", "MODEL_CARD.md"


class PretrainedError(UserError):
    """The model that FastCap brings along is not as its card says."""


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
