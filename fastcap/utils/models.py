"""What a path to a model may be: a file, a run's folder, an export's folder, or the name ``pretrained``."""

from __future__ import annotations

import json
import os
from pathlib import Path

PRETRAINED = "pretrained"
SHIPPED = Path(__file__).parents[1] / "pretrained"  # the model that FastCap brings along
EXPORT_INDEX = "export.json"  # in an export's folder: what it holds


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
