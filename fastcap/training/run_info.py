"""What loggers are told about a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LONGEST_NAME = 100
_SAYS_NOTHING = ("callbacks", "logger", "name", "resume")


@dataclass(frozen=True)
class RunInfo:
    """A run, as loggers see it.

    Attributes:
        folder: Where it writes.
        config: Its resolved configuration, as plain data.
        overrides: What the command line changed, in Hydra's form.
        job_type: ``train``, ``sweep`` for a job of a multirun, or ``eval``.
        resume: The checkpoint it goes on from.
        resumed_step: Training steps done before; rows of later steps are written anew.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    job_type: str = "train"
    resume: Path | None = None
    resumed_step: int = 0

    @property
    def name(self) -> str:
        """What sets the run apart: its overrides by their last key, else the name of its folder."""
        return short_name(self.overrides) or self.folder.name


def short_name(overrides: Sequence[str]) -> str:
    """Join overrides into a short name: ``optim.optimizer.lr=1e-3 decoder=dense`` -> ``lr=1e-3 decoder=dense``.

    A key keeps its whole path where another one ends alike.
    """
    pairs = [override.lstrip("+~").partition("=") for override in overrides]
    pairs = [pair for pair in pairs if pair[0].split(".")[0].split("@")[0] not in _SAYS_NOTHING]
    leaves = [key.rpartition(".")[2] for key, _, _ in pairs]
    words = [
        f"{leaf if leaves.count(leaf) == 1 else key}{equals}{value}"
        for leaf, (key, equals, value) in zip(leaves, pairs, strict=True)
    ]
    name = " ".join(words)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
