"""Loggers beside W&B's, and what all of them are told of the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from fastcap.training.rows import RowWriter

_LONGEST_NAME = 100
_NOT_IN_NAMES = ("callbacks", "logger", "name", "resume")


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
    pairs = [pair for pair in pairs if pair[0].split(".")[0].split("@")[0] not in _NOT_IN_NAMES]
    leaves = [key.rpartition(".")[2] for key, _, _ in pairs]
    words = [
        f"{leaf if leaves.count(leaf) == 1 else key}{equals}{value}"
        for leaf, (key, equals, value) in zip(leaves, pairs, strict=True)
    ]
    name = " ".join(words)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, in a run's own folder; a run resumed in place keeps its earlier rows.

    Args:
        run: The run. Rows from ``resumed_step`` on are dropped: those steps are done again.
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(str(run.folder), name=None, version="", flush_logs_every_n_steps=1)
        self._path = run.folder / "metrics.csv"
        self._resumed_step = run.resumed_step if run.resume else None
        self._writer: RowWriter | None = None
        if run.resume:
            _ = self.experiment  # drops the rows of steps that are done again, even if the run breaks off here

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which starts with the earlier rows."""
        if self._writer is None:
            self._writer = self._experiment = RowWriter(self._path, self._resumed_step)  # type: ignore[assignment]
        return self._writer


def csv_logger(run: RunInfo) -> Logger:
    """Log scalars to ``metrics.csv`` in the run's folder."""
    return RunCSVLogger(run)


def tensorboard_logger(run: RunInfo) -> Logger:
    """Log scalars for TensorBoard, into ``tensorboard/`` in the run's folder.

    Raises:
        ModuleNotFoundError: If TensorBoard is not installed.
    """
    # Where the run is resumed in place, steps that are done again hide the earlier ones.
    options: dict[str, Any] = {"purge_step": run.resumed_step} if run.resume else {}
    return TensorBoardLogger(str(run.folder), name="tensorboard", version="", default_hp_metric=False, **options)


@contextmanager
def closing_loggers(loggers: Iterable[Logger]) -> Iterator[None]:
    """End W&B's run with the block, as failed where that fails: the next job of a multirun gets one of its own."""
    kept, failed = list(loggers), True
    try:
        yield
        failed = False
    finally:
        for logger in kept:
            if close := getattr(logger, "close", None):
                close(failed)
