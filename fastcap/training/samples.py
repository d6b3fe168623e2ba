"""Sample images with their captions, after each validation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from fastcap.module import CaptioningModule, Prediction
from fastcap.reporting.pictures import draw_captions
from fastcap.training.media import media_loggers, media_step, stage_name
from fastcap.types import CaptionBatch
from fastcap.utils.distributed import gather_list, together

log = logging.getLogger(__name__)


class SampleCaptions(L.Callback):
    """After each validation write a picture of sample images with their captions, and every caption as JSON.

    Files in the run's folder: ``samples/epoch_NNN.png`` and ``captions.json`` (of the last validation). Loggers that
    take media get a table ``val/captions`` (image, caption, references, score, the image's own CIDEr) and the images
    themselves, captioned, as ``val/samples``.

    Args:
        num_images: Images in the picture and the table.
        columns: Images a row of the picture.
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

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the picture and the captions; a picture that fails is a warning, not the end of the run."""
        assert isinstance(pl_module, CaptioningModule)
        try:
            scores = pl_module.image_scores()  # every process takes part
        except Exception as error:
            log.warning("scores of single images left out: %s", error)
            scores = {}
        with together():
            predictions = gather_list(pl_module.predictions)
        rows = list({p.image_id: p for p in predictions}.values())
        self._show(
            trainer, pl_module, rows, {image: score.get("cider", float("nan")) for image, score in scores.items()}
        )

    @rank_zero_only
    def _show(
        self, trainer: L.Trainer, module: CaptioningModule, predictions: list[Prediction], cider: dict[int, float]
    ) -> None:
        folder = Path(trainer.default_root_dir)
        rows = [
            {"image_id": p.image_id, "caption": p.caption, "score": round(p.score, 4), "references": p.references}
            for p in predictions
        ]
        (folder / "captions.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        try:
            images = [image.permute(1, 2, 0).cpu().numpy() for batch in self._batches for image in batch.images]
            if not images:
                return
            images = images[: self.num_images]
            shown = module.predictions[: len(images)]
            captions, references = [p.caption for p in shown], [p.references for p in shown]
            path = folder / "samples" / f"{stage_name(trainer)}.png"
            draw_captions(path, images, captions, references, self.columns)
            table = [
                [trainer.current_epoch, str(p.image_id), image, p.caption, "\n".join(p.references), p.score, own]
                for p, image in zip(shown, images, strict=True)
                for own in [cider.get(p.image_id, float("nan"))]
            ]
            columns = ["epoch", "image_id", "image", "caption", "references", "score", "cider"]
            for logger in media_loggers(trainer):
                logger.log_rows(f"{module.eval_split}/captions", columns, table, media_step(trainer))
                logger.log_pictures(f"{module.eval_split}/samples", images, captions, media_step(trainer))
        except Exception as error:
            log.warning("sample picture left out: %s", error)
