"""After validations: sample images with their captions, and how they were refined; at the end quality against speed."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from fastcap.generation.icmr import ICMRDecoder
from fastcap.metrics import CaptionMetrics
from fastcap.metrics.evaluation import Prediction
from fastcap.model import FastCap
from fastcap.module import CaptioningModule
from fastcap.reporting.pictures import draw_captions, draw_refinement, write_steps
from fastcap.training.checkpoints import model_state, open_checkpoint
from fastcap.training.log_wandb import log_step, read_picture, wandb_loggers
from fastcap.types import CaptionBatch
from fastcap.utils.files import write_json, write_rows

log = logging.getLogger(__name__)

PASSES = 3  # of decoding, whose median is the time


class FirstImages(L.Callback):
    """Keep the first batches of each validation, which are always the same, for ``num_images`` in the first process."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.batches: list[CaptionBatch] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last validation's images."""
        self.batches = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: CaptionBatch,
        batch_idx: int,
        *_: int,
    ) -> None:
        """Keep a batch while there are too few images."""
        if trainer.is_global_zero and sum(map(len, self.batches)) < self.num_images:
            self.batches.append(batch)

    def images(self) -> torch.Tensor:
        """The images. (num_images, 3, H, W)."""
        return torch.cat([batch.images for batch in self.batches])[: self.num_images]


class SampleCaptions(FirstImages):
    """Write a picture of sample images with their captions, and every caption as JSON.

    Files in the run's folder: ``samples/epoch_NNN.png`` and ``captions.json`` (of the last validation). W&B gets a
    table ``val/captions`` (image, caption, references, score, the image's own CIDEr) and the images, captioned, as
    ``val/samples``.

    Args:
        num_images: Images in the picture and the table.
        columns: Images a row of the picture.
    """

    def __init__(self, num_images: int = 12, columns: int = 4) -> None:
        super().__init__(num_images)
        self.columns = columns

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the captions and the picture; a picture that fails is a warning, not the end of the run."""
        assert isinstance(pl_module, CaptioningModule)
        if not trainer.is_global_zero:
            return
        rows = [
            {"image_id": p.image_id, "caption": p.caption, "score": round(p.score, 4), "references": p.references}
            for p in pl_module.evaluation.predictions
        ]
        write_json(Path(trainer.default_root_dir) / "captions.json", rows)
        try:
            if self.batches:
                self._draw(trainer, pl_module)
        except Exception as error:
            log.warning("sample picture left out: %s", error)

    def _draw(self, trainer: L.Trainer, module: CaptioningModule) -> None:
        images = [image.permute(1, 2, 0).cpu().numpy() for image in self.images()]
        shown: list[Prediction] = module.evaluation.predictions[: len(images)]
        captions = [p.caption for p in shown]
        path = Path(trainer.default_root_dir) / "samples" / f"{stage_name(trainer)}.png"
        draw_captions(path, images, captions, [p.references for p in shown], self.columns)
        columns = ["epoch", "image_id", "image", "caption", "references", "score", "cider"]
        table = [
            [trainer.current_epoch, str(p.image_id), image, p.caption, "\n".join(p.references), p.score, own["cider"]]
            for p, image in zip(shown, images, strict=True)
            for own in [module.evaluation.image_scores[p.image_id]]
        ]
        for logger in wandb_loggers(trainer):
            logger.log_rows(f"{module.evaluation.name}/captions", columns, table, log_step(trainer))
            logger.log_pictures(f"{module.evaluation.name}/samples", images, captions, log_step(trainer))


class RefinementPictures(FirstImages):
    """Write how the first images' captions were refined, once training is over or where a checkpoint is scored.

    Files in the run's folder, under ``refinement/``: ``epoch_NNN_IMAGEID.png`` for each image and ``epoch_NNN.csv``
    with every token of every step. W&B gets the pictures as ``val/refinement``. An autoregressive decoder refines
    nothing, and has none.
    """

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Caption the images once more, recorded, and draw them; what fails is a warning."""
        assert isinstance(pl_module, CaptioningModule)
        following = trainer.current_epoch + (trainer.check_val_every_n_epoch or 1)
        again = trainer.state.fn == TrainerFn.FITTING and following < (trainer.max_epochs or 0)
        if again or not self.batches or self.num_images < 1 or pl_module.model.decoder.causal:
            return
        try:
            paths, captions = self._draw(trainer, pl_module)
            pictures = [read_picture(path) for path in paths]
            for logger in wandb_loggers(trainer):
                logger.log_pictures(f"{pl_module.evaluation.name}/refinement", pictures, captions, log_step(trainer))
        except Exception as error:
            log.warning("refinement pictures left out: %s", error)

    def _draw(self, trainer: L.Trainer, module: CaptioningModule) -> tuple[list[Path], list[str]]:
        images = self.images()
        ids = torch.cat([batch.image_ids for batch in self.batches]).tolist()
        references = [texts for batch in self.batches for texts in batch.references]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            refinement = module.model(images, record_steps=True)
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


def stage_name(trainer: L.Trainer) -> str:
    """Name a validation for file names: its epoch in training, ``evaluated`` where a checkpoint is scored."""
    return f"epoch_{trainer.current_epoch:03d}" if trainer.state.fn == TrainerFn.FITTING else "evaluated"


class SpeedQuality(FirstImages):
    """At the end of training measure CIDEr against decoding time for several numbers of refinement steps.

    They lie in the run's folder as ``speed_quality.csv``; W&B draws the curve. A copy of the model is measured, with
    the best checkpoint's weights where there is one. Captions of the last validation's first images are scored; the
    time is the decoder's alone (length beam included), of the first batch: the median of three passes, after the
    scored one has warmed up. An autoregressive decoder has no steps, and no curve.

    Args:
        steps: Numbers of refinement steps.
        max_images: At most so many images, in whole batches.
    """

    def __init__(self, steps: Sequence[int] = (1, 2, 4, 8), max_images: int = 500) -> None:
        super().__init__(max_images)
        self.steps = tuple(steps)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, write and log; what fails is a warning."""
        assert isinstance(pl_module, CaptioningModule)
        batches, self.batches = self.batches, []
        if not batches or not self.steps or not isinstance(pl_module.model.refinement, ICMRDecoder):
            return
        try:
            model = copy.deepcopy(pl_module.model).eval().to(pl_module.device)
            if best := getattr(trainer.checkpoint_callback, "best_model_path", ""):
                model.load_state_dict(model_state(open_checkpoint(best)))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                points = measure(model, pl_module, batches, self.steps)
            write_rows(Path(trainer.default_root_dir) / "speed_quality.csv", points)
            for logger in wandb_loggers(trainer):
                logger.log_curve("speed_quality", points, "decode_ms")
        except Exception as error:
            log.warning("speed/quality curve left out: %s", error)


def measure(
    model: FastCap, module: CaptioningModule, batches: Sequence[CaptionBatch], steps: Sequence[int]
) -> list[dict[str, float]]:
    """Caption images with each number of steps, and time the first batch: a row for each.

    ``module`` says how captions become text and how they are scored.
    """
    memories = [model.encode(batch.images) for batch in batches]
    metrics = CaptionMetrics(**{**module.evaluation.metric_options, "names": ["bleu", "cider"]})
    image_ids = [image_id for batch in batches for image_id in batch.image_ids.tolist()]
    references = [texts for batch in batches for texts in batch.references]
    points = []
    for count in steps:
        captions = [text for memory in memories for text in module.texts(model.decode(memory, num_steps=count))]
        seconds = []
        for _ in range(PASSES):
            started = time.perf_counter()
            model.decode(memories[0], num_steps=count).tokens.cpu()  # waits for a GPU
            seconds.append(time.perf_counter() - started)
        scores = metrics.score(image_ids, captions, references).metrics
        milliseconds = round(1000 * statistics.median(seconds) / len(batches[0]), 4)
        quality = {name: round(scores[name], 4) for name in ("cider", "bleu4")}
        points.append({"num_steps": count, "decode_ms": milliseconds, **quality})
    return points
