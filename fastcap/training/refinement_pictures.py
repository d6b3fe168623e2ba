"""How captions came about: sample images' refinement, step by step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from fastcap.module import CaptioningModule
from fastcap.reporting.refinement import draw_refinement, write_steps
from fastcap.training.media import media_loggers, media_step, read_picture, stage_name
from fastcap.types import CaptionBatch

log = logging.getLogger(__name__)


class RefinementPictures(L.Callback):
    """After each validation write how the first images' captions were refined.

    Files in the run's folder, under ``refinement/``: ``epoch_NNN_IMAGEID.png`` for each image and ``epoch_NNN.csv``
    with every token of every step. Loggers that take media get the pictures as ``val/refinement``. A decoder that
    writes word after word refines nothing, and has none.

    Args:
        num_images: How many images, always the same ones: the first of the split.
    """

    def __init__(self, num_images: int = 3) -> None:
        self.num_images = num_images
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
        """Caption the images once more, recorded, and draw them; what fails is a warning."""
        assert isinstance(pl_module, CaptioningModule)
        if not self._batches or self.num_images < 1 or pl_module.model.decoder.causal:
            return
        try:
            paths, captions = self._write(trainer, pl_module)
            pictures = [read_picture(path) for path in paths]
            for logger in media_loggers(trainer):
                logger.log_pictures(f"{pl_module.eval_split}/refinement", pictures, captions, media_step(trainer))
        except Exception as error:
            log.warning("refinement pictures left out: %s", error)

    def _write(self, trainer: L.Trainer, module: CaptioningModule) -> tuple[list[Path], list[str]]:
        images = torch.cat([batch.images for batch in self._batches])[: self.num_images]
        ids = torch.cat([batch.image_ids for batch in self._batches]).tolist()
        references = [texts for batch in self._batches for texts in batch.references]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            refinement = module.model.generate(images, record_steps=True)
        folder, stage = Path(trainer.default_root_dir) / "refinement", stage_name(trainer)
        captions, weights, steps, paths = module.texts(refinement), refinement.expert_weights, {}, []
        for row, image in enumerate(images):
            name = str(ids[row])
            steps[name] = refinement.steps_of(row, module.decode_text)
            paths.append(folder / f"{stage}_{name}.png")
            draw_refinement(
                paths[-1],
                image.permute(1, 2, 0).cpu().numpy(),
                captions[row],
                steps[name],
                [] if weights is None else weights[row].float().tolist(),
                (references[row] or [""])[0] if row < len(references) else "",
            )
        write_steps(folder / f"{stage}.csv", steps)
        return paths, captions
