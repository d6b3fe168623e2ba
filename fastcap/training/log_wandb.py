"""Weights & Biases: what is shown under which name, and a logger that never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fastcap.training.media import MediaLogger

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
# Validation metrics whose best value a run's summary keeps.
HIGHEST = ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor", "spice")
LOWEST = ("val/loss", "dlag/mae")


def define_metrics(run: Any) -> None:
    """Give each scalar its axis, and let the summary keep the best beside the last value."""
    run.define_metric(STEP, hidden=True)
    run.define_metric("epoch", hidden=True)
    for pattern in ("train/*", "moe/*"):
        run.define_metric(pattern, step_metric=STEP)
    for pattern in ("val/*", "test/*", "dlag/*", "time/*"):
        run.define_metric(pattern, step_metric="epoch")
    for name in HIGHEST:
        run.define_metric(f"val/{name}", step_metric="epoch", summary="max,last")
    for name in LOWEST:
        run.define_metric(name, step_metric="epoch", summary="min,last")
    run.define_metric("time/images_per_s", step_metric="epoch", summary="mean,last")


class RunWandbLogger(WandbLogger, MediaLogger):
    """Lightning's W&B logger with tables, pictures and curves; what fails is one warning, never the end of a run."""

    _failed = False

    def _try(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            action(*arguments, **options)
        except Exception as error:
            if not self._failed:
                log.warning("W&B failed, and further failures are not told: %s", error)
            self._failed = True

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Add to the run's configuration."""
        self._try(super().log_hyperparams, params)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember or upload a checkpoint, where that was asked for."""
        self._try(super().after_save_checkpoint, checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload checkpoints, where that was asked for."""
        self._try(super().finalize, status)

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """End the run."""
        self._try(self.experiment.finish, exit_code=int(failed))

    @rank_zero_only
    def log_pictures(self, key: str, pictures: Sequence[np.ndarray], captions: Sequence[str], step: int) -> None:
        """Log pictures as a list of W&B images, which an offline run keeps in its own folder."""
        self._try(self.log_image, key, _same_size(pictures), step, caption=list(captions))

    @rank_zero_only
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table; cells that are arrays become pictures."""
        self._try(self._log_rows, key, columns, rows, step)

    def _log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        data = [[wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in rows]
        self.log_table(key, columns=list(columns), data=data, step=step)

    @rank_zero_only
    def log_curve(self, key: str, points: Sequence[Mapping[str, float]], axis: str) -> None:
        """Log each point as ``KEY/NAME``, drawn over ``KEY/AXIS``: curves of several runs then share a panel."""
        self._try(self._log_curve, key, points, axis)

    def _log_curve(self, key: str, points: Sequence[Mapping[str, float]], axis: str) -> None:
        self.experiment.define_metric(f"{key}/{axis}", hidden=True)
        for name in points[0]:
            if name != axis:
                self.experiment.define_metric(f"{key}/{name}", step_metric=f"{key}/{axis}")
        for point in points:
            self.experiment.log({f"{key}/{name}": value for name, value in point.items()})


def _same_size(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Fill up with white to the largest height and width: W&B shows a list at the size of its first picture."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    return [
        np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures
    ]
