"""What a run prints: a progress bar without internals, and no advertisements or hints that do not apply."""

from __future__ import annotations

import logging
import warnings

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

# Warnings about what FastCap does on purpose; all others stay.
_EXPECTED = (
    ".*does not have many workers",  # images are cached: loading is not the bottleneck
    "Checkpoint directory .* exists and is not empty",  # resumed in place
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
