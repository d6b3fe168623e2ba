"""What a run shows while it runs: sample pictures, throughput, and loggers that never stop it."""

from __future__ import annotations

import json
import logging
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_only

from fastcap.module import CaptioningModule
from fastcap.types import CaptionBatch

log = logging.getLogger(__name__)


class SampleCaptions(L.Callback):
    """After each validation write a picture of sample images with their captions, and every caption as JSON.

    Files in the run's folder: ``samples/epoch_NNN.png`` and ``captions.json`` (of the last validation).

    Args:
        num_images: Images in the picture.
        columns: Images a row.
    """

    def __init__(self, num_images: int = 12, columns: int = 4) -> None:
        self.num_images = num_images
        self.columns = columns
        self._batches: list[CaptionBatch] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last validation's images."""
        self._batches = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: CaptionBatch,
        batch_idx: int,
        *_: int,
    ) -> None:
        """Keep the first images."""
        if sum(map(len, self._batches)) < self.num_images:
            self._batches.append(batch)

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the picture and the captions; a picture that fails is a warning, not the end of the run."""
        assert isinstance(pl_module, CaptioningModule)
        folder = Path(trainer.default_root_dir)
        rows = [
            {"image_id": p.image_id, "caption": p.caption, "score": round(p.score, 4), "references": p.references}
            for p in pl_module.predictions
        ]
        (folder / "captions.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        try:
            self._draw(folder / "samples" / f"epoch_{trainer.current_epoch:03d}.png", pl_module)
        except Exception as error:
            log.warning("sample picture left out: %s", error)

    def _draw(self, path: Path, module: CaptioningModule) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        images = [image for batch in self._batches for image in batch.images][: self.num_images]
        if not images:
            return
        rows = -(-len(images) // self.columns)
        figure = Figure(figsize=(3.2 * self.columns, 4.3 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, self.columns, squeeze=False).flatten()
        for axis in axes:
            axis.axis("off")
        for axis, image, prediction in zip(axes, images, module.predictions, strict=False):
            axis.imshow(image.permute(1, 2, 0).cpu().numpy())
            references = [f"· {r}" for r in prediction.references[:2]]
            axis.set_title("\n".join(textwrap.wrap(prediction.caption or "(empty)", 34)), fontsize=10, weight="bold")
            lines = [line for r in references for line in textwrap.wrap(r, 44)]
            axis.text(0.5, -0.02, "\n".join(lines), transform=axis.transAxes, ha="center", va="top", fontsize=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)


class Throughput(L.Callback):
    """Log training images a second, counted over each epoch's steps without validation."""

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


def csv_logger(run_dir: str) -> Logger:
    """Log scalars to ``metrics.csv`` in the run's folder."""
    return CSVLogger(run_dir, name=None, version="")


def wandb_logger(run_dir: str, project: str = "fastcap", group: str | None = None, name: str | None = None) -> Any:
    """Log to Weights & Biases: online with an account set up, else offline into the run's folder.

    ``WANDB_MODE`` decides where it is set. A W&B that fails is a warning and None, never the end of the run.
    """
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        logger = WandbLogger(
            project=project,
            group=group,
            name=name,
            save_dir=run_dir,
            offline=mode == "offline",
            mode=mode,
            settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
        )
        logger.experiment  # noqa: B018 - starts the run here, where its failure can be survived
        return logger
    except Exception as error:
        log.warning("W&B logger left out: %s", error)
        return None
