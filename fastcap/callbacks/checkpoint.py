"""Which checkpoints a run keeps, and where."""

from __future__ import annotations

from pathlib import Path

import lightning as L


class RunCheckpoint(L.pytorch.callbacks.ModelCheckpoint):
    """Keep ``checkpoints/best.ckpt`` (by a validation metric) and ``checkpoints/last.ckpt`` in the run's folder."""

    def __init__(self, monitor: str = "val/cider", mode: str = "max") -> None:
        super().__init__(
            monitor=monitor, mode=mode, filename="best", save_last=True, save_top_k=1, enable_version_counter=False
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the folder: the run's own, wherever the loggers write."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(RunCheckpoint):
    """Keep ``checkpoints/last.ckpt`` alone, to resume from."""

    def __init__(self) -> None:
        L.pytorch.callbacks.ModelCheckpoint.__init__(self, filename="last", enable_version_counter=False)
