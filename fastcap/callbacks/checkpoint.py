"""Which checkpoints a run keeps, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn


class LastCheckpoint(L.pytorch.callbacks.ModelCheckpoint):
    """Keep ``checkpoints/last.ckpt`` in the run's folder, to resume from.

    It is written at the end of every epoch and at validations within one. (Lightning's own ``save_last`` follows the
    best checkpoint only: what a killed run had learnt since then would be lost.)

    Args:
        **options: ``ModelCheckpoint``'s own, for what is kept beside it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"save_top_k": 0, **options}, enable_version_counter=False)
        self._last_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the folder: the run's own, wherever the loggers write."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best where asked for, then the last."""
        super().on_validation_end(trainer, pl_module)
        if trainer.val_check_interval != 1.0:  # else the epoch ends now
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best where that was not done yet, then the last."""
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer)

    def _keep_last(self, trainer: L.Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and not trainer.fast_dev_run and trainer.global_step != self._last_step:  # type: ignore[attr-defined]
            self._last_step = trainer.global_step
            self.last_model_path = str(Path(str(self.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)


class RunCheckpoint(LastCheckpoint):
    """Keep ``checkpoints/best.ckpt``, by a validation metric, beside ``checkpoints/last.ckpt``."""

    def __init__(self, monitor: str = "val/cider", mode: str = "max") -> None:
        super().__init__(monitor=monitor, mode=mode, filename="best", save_top_k=1)
