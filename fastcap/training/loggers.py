"""What a run logs and prints: loggers beside W&B's, what all of them are told of the run, the bar, images a second."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fastcap.types import CaptionBatch
from fastcap.utils.files import csv_lines, write_rows

_LONGEST_NAME = 100
# Warnings about what FastCap does on purpose; all others stay.
_EXPECTED = (
    ".*does not have many workers",  # images are cached: loading is not the bottleneck
    "Checkpoint directory .* exists and is not empty",  # resumed in place
    "The dirpath has changed from",  # resumed elsewhere
    "The number of training batches .* is smaller than the logging interval",  # an epoch's last values are logged
    "Precision .* is not supported by the model summary",  # bf16; its megabytes are an estimate
    "Found .* in eval mode at the start of training",  # a frozen encoder
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's use of torch
)
_NOT_IN_NAMES = ("callbacks", "logger", "name", "resume")


@dataclass(frozen=True)
class RunInfo:
    """A run, as loggers see it."""

    folder: Path  # where it writes
    config: dict[str, Any] = field(default_factory=dict)  # resolved, as plain data
    overrides: Sequence[str] = ()  # what the command line changed, in Hydra's form
    job_type: str = "train"  # "sweep" for a job of a multirun, or "eval"
    resume: Path | None = None  # the checkpoint it goes on from
    resumed_step: int = 0  # training steps done before; rows of later steps are written anew

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


class RunCSVLogger(Logger):
    """Log scalars to ``metrics.csv`` in the run's folder, each row on the disk as soon as it is logged.

    Lightning's own empties the file of a run that is resumed in place. Here earlier rows stay, but for those of steps
    that are done again. The file is replaced as a whole when its header grows: a process killed at any moment leaves at
    most one half row, at the end, which is left out when the file is read again.
    """

    name = version = None

    def __init__(self, run: RunInfo) -> None:
        super().__init__()
        self.path, self.columns = run.folder / "metrics.csv", list[str]()
        if getattr(rank_zero_only, "rank", 0) == 0:
            rows = [row for row in read_rows(self.path) if int(row["step"]) < run.resumed_step] if run.resume else []
            self._replace(rows) if rows else self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row."""
        row = {name: getattr(value, "item", lambda v=value: v)() for name, value in metrics.items()} | {"step": step}
        if row.keys() <= set(self.columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(csv_lines(self.columns, [row]))
        else:
            self._replace([*read_rows(self.path), row])

    def log_hyperparams(self, *params: Any, **more: Any) -> None:
        """Do nothing: Hydra writes the configuration."""

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        self.columns = sorted(set(self.columns).union(*rows))
        write_rows(self.path, rows, self.columns)


csv_logger = RunCSVLogger  # its name in configurations


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file's whole rows, without empty cells; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    return [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(io.StringIO(whole))]


def tensorboard_logger(run: RunInfo) -> Logger:
    """Log scalars for TensorBoard, which the extra of that name brings, into ``tensorboard/`` in the run's folder."""
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


def quiet() -> None:
    """Silence Lightning's hints and notices, such as tips and the devices that are not used; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar, less the logger's version number and the waiting of one process for all."""

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what stands beside the bar."""
        return {name: value for name, value in super().get_metrics(*args, **kwargs).items() if name != "v_num"}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is: to ask for an epoch's means waits for the other processes, which have no bar."""


class Throughput(L.Callback):
    """Log training images a second, over each epoch's steps without validation.

    Lightning's ``ThroughputMonitor`` logs validations by counters of their own as steps: rows of ``metrics.csv`` would
    not be those of a run that was stopped and resumed.
    """

    def __init__(self) -> None:
        # A run that is resumed within an epoch does not start one.
        self._images, self._seconds = 0, 0.0
        self._started: float | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to count."""
        self._images, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock within an epoch."""
        self._started = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        """Count the images; the time since the last step includes loading them."""
        now = time.perf_counter()
        if self._started is not None:  # the step after a validation is left out
            self._seconds += now - self._started
            self._images += len(batch) * trainer.world_size
        self._started = now

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's rate."""
        pl_module.log("time/images_per_s", self._images / max(self._seconds, 1e-9), sync_dist=True)
