"""How fast training goes."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from fastcap.types import CaptionBatch


class Throughput(L.Callback):
    """Log training images a second, counted over each epoch's steps without validation."""

    def __init__(self) -> None:
        self._images, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._images, self._seconds, self._started = 0, 0.0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: CaptionBatch, batch_idx: int
    ) -> None:
        """Mark where a step's work begins."""
        if batch_idx == 0:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        """Count the images; the time since the last step includes loading them."""
        now = time.perf_counter()
        self._seconds += now - self._started
        self._started = now
        self._images += len(batch) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's rate."""
        pl_module.log("time/images_per_s", self._images / max(self._seconds, 1e-9), rank_zero_only=True)
