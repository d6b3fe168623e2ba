"""Which classes and functions the configuration inside a checkpoint may build: a stranger's could name any program."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from typing import Any

ENVIRONMENT = "FASTCAP_ALLOW"
# Classes of these modules, and functions of the second list, do nothing but build parts.
CLASSES = (
    *(f"fastcap.{name}" for name in ("alignment", "backbone", "data", "decoder", "generation", "jobs")),
    *(f"fastcap.{name}" for name in ("losses", "metrics", "module", "optim", "training")),
    *(f"lightning.pytorch.{name}" for name in ("accelerators", "callbacks", "loggers", "plugins", "profilers")),
    *("lightning.pytorch.strategies", "lightning.pytorch.trainer", "torch.nn", "torch.optim"),
)
FUNCTIONS = ("fastcap.training.log_wandb", "fastcap.training.loggers", "fastcap.data.tokenizer", "fastcap.optim")


def not_allowed(config: Any) -> str | None:
    """Find what a configuration would build that is neither FastCap's nor a package of the user's own choice.

    Packages named in the environment variable ``FASTCAP_ALLOW``, separated by commas, are allowed whole.

    Args:
        config: Plain data, with everything resolved.

    Returns:
        Where it is and what it names, for people; None if there is nothing.
    """
    chosen = tuple(filter(None, map(str.strip, os.environ.get(ENVIRONMENT, "").split(","))))
    for where, target in _targets(config, ""):
        if not (isinstance(target, str) and (_inside(target, chosen) or _known(target))):
            package = target.split(".")[0] if isinstance(target, str) else ""
            return f"{where}` is {target!r}, no part of FastCap; to allow it, set {ENVIRONMENT}={package}"
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
    if not _inside(target, (*CLASSES, "lightning.Trainer")):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return _inside(getattr(found, "__module__", None) or "", CLASSES if isinstance(found, type) else FUNCTIONS)
