"""Keep the weights of a backbone in a file of their own: safetensors, its configuration as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fastcap.utils.files import atomic_write

FORMAT = "fastcap-backbone-1"


def save_backbone(path: Path, backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Write a backbone's weights; the file appears at once when whole.

    Args:
        path: The file.
        backbone: Its weights and BatchNorm statistics are kept.
        config: Plain data that the backbone was built from.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    with atomic_write(path) as part:
        save_file(state, part, metadata={"format": FORMAT, "config": json.dumps(config)})
        part.chmod(0o644)  # safetensors makes files for the owner alone


def load_backbone(path: Path | str, backbone: nn.Module) -> None:
    """Fill a backbone with saved weights.

    Raises:
        ValueError: Naming the file and the field, if it is missing, no backbone file, or of another backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a FastCap backbone file (its metadata field `format` is not {FORMAT!r})")
    config = json.loads(metadata["config"])
    own = backbone.state_dict()
    for name in sorted(own.keys() | state.keys()):
        theirs, ours = (tuple(s[name].shape) if name in s else "missing" for s in (state, own))
        if theirs != ours:
            raise ValueError(f"{path}: field {name!r} is {theirs}, this backbone's {ours}; the file's is of {config}")
    backbone.load_state_dict(state)
