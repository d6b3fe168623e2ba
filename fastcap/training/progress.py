"""What a run prints and logs of its progress: a bar without internals, images a second, no advertisements."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from fastcap.types import CaptionBatch

# Warnings about what FastCap does on purpose; all others stay.
_EXPECTED = (
    ".*does not have many workers",  # images are cached: loading is not the bottleneck
    "Checkpoint directory .* exists and is not empty",  # resumed in place
    "The dirpath has changed from",  # resumed elsewhere
    "The number of training batches .* is smaller than the logging interval",  # an epoch's last values are logged
    r".*isinstance\(treespec, LeafSpec\).* is deprecated",  # Lightning's use of torch
)


def quiet() -> None:
    """Silence Lightning's hints and notices, such as tips and the devices that are not used; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)


class RunProgressBar(RichProgressBar):
    """Lightning's rich progress bar, less the logger's version number."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


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
        pl_module.log("time/images_per_s", self._images / max(self._seconds, 1e-9), rank_zero_only=True)
