"""What a run's results say of where they come from: when, by which code, of what."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import fastcap


def describe_run(cfg: DictConfig, overrides: Sequence[str], split: str, images: int) -> dict[str, Any]:
    """Describe a run for its ``results.json``.

    Args:
        cfg: Its configuration.
        overrides: What the command line changed.
        split: The split that its metrics are of.
        images: Images of the split that were captioned.

    Returns:
        ``date``, ``commit`` and ``dirty`` (null outside a checkout), ``seed``, ``given`` (the overrides), ``decoder``,
        ``data``, ``split``, ``images`` and ``refinement`` (its settings).
    """
    commit, dirty = code_state()
    return {
        "date": datetime.now().isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "seed": cfg.seed,
        "given": list(overrides),
        "decoder": str(cfg.decoder._target_),
        "data": data_name(cfg),
        "split": split,
        "images": images,
        "refinement": {
            str(key): value
            for key, value in OmegaConf.to_container(cfg.refinement, resolve=True).items()  # type: ignore[union-attr]
            if not str(key).startswith("_")
        },
    }


def data_name(cfg: DictConfig) -> str:
    """Name a data set: by its folder, or by its kind where it has none."""
    root = OmegaConf.select(cfg, "data.source.root")
    return Path(str(root)).resolve().name if root else str(cfg.data.source._target_).rpartition(".")[2].lower()


def code_state() -> tuple[str | None, bool | None]:
    """The commit of the code that runs, and whether tracked files differ from it; None outside FastCap's checkout."""
    root = Path(fastcap.__file__).parents[1]
    try:
        git = ["git", "-C", str(root)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        top, commit = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], **options).stdout.split("\n")[:2]
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    if Path(top).resolve() != root.resolve():
        return None, None
    return commit[:10], bool(changed.strip())
