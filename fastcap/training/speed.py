"""Quality against speed: the same checkpoint with few and with many refinement steps."""

from __future__ import annotations

import copy
import csv
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from fastcap.generation.icmr import ICMRDecoder
from fastcap.metrics import CaptionMetrics
from fastcap.model import FastCap
from fastcap.module import CaptioningModule
from fastcap.reporting.pictures import SpeedPoint, draw_curve
from fastcap.training.checkpoints import model_state, open_checkpoint
from fastcap.training.log_wandb import log_step, read_picture, wandb_loggers
from fastcap.training.pictures import FirstImages
from fastcap.types import CaptionBatch

log = logging.getLogger(__name__)

PASSES = 5


class SpeedQuality(FirstImages):
    """At the end of training measure CIDEr against decoding time for several numbers of refinement steps.

    Files in the run's folder: ``speed_quality.csv`` and ``speed_quality.png``. A copy of the model is measured, with
    the best checkpoint's weights where there is one. Captions of the last validation's first images are scored; the
    time is the decoder's alone (length beam included), of the first batch: the median of five passes, after the scored
    one has warmed up. An autoregressive decoder has no steps, and no curve.

    Args:
        steps: Numbers of refinement steps.
        max_images: At most so many images, in whole batches.
    """

    def __init__(self, steps: Sequence[int] = (1, 2, 4, 8), max_images: int = 500) -> None:
        super().__init__(max_images)
        self.steps = tuple(steps)

    def on_validation_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Keep the first images of training's validations."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_batch_end(trainer, *arguments)

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
            self._show(trainer, points, pl_module.model.refinement.num_steps, batches)
        except Exception as error:
            log.warning("speed/quality curve left out: %s", error)

    def _show(
        self, trainer: L.Trainer, points: Sequence[SpeedPoint], chosen: int, batches: Sequence[CaptionBatch]
    ) -> None:
        folder = Path(trainer.default_root_dir)
        with (folder / "speed_quality.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(SpeedPoint)])
            writer.writeheader()
            writer.writerows({k: round(v, 4) for k, v in asdict(point).items()} for point in points)
        threads = torch.get_num_threads()
        note = (
            f"{sum(map(len, batches))} validation images, batches of {len(batches[0])} on {batches[0].images.device}, "
            f"{threads} thread{'s' * (threads > 1)}; the decoder alone, median of {PASSES} passes"
        )
        path = folder / "speed_quality.png"
        draw_curve(path, points, chosen, note)
        for logger in wandb_loggers(trainer):
            logger.log_curve("speed_quality", [asdict(point) for point in points], "decode_ms")
            logger.log_pictures("speed_quality/picture", [read_picture(path)], [note], log_step(trainer))


def measure(
    model: FastCap, module: CaptioningModule, batches: Sequence[CaptionBatch], steps: Sequence[int]
) -> list[SpeedPoint]:
    """Caption the batches with each number of steps, and time the first batch.

    Args:
        model: What is measured.
        module: Says how captions become text and which metrics are wanted.
        batches: Images with references.
        steps: Numbers of refinement steps.
    """
    encoded = [model.encode(batch.images) for batch in batches]
    metrics = CaptionMetrics(**{**module.evaluation.metric_options, "names": ["bleu", "cider"]})
    image_ids = [image_id for batch in batches for image_id in batch.image_ids.tolist()]
    references = [texts for batch in batches for texts in batch.references]
    points = []
    for count in steps:
        captions = [text for images in encoded for text in module.texts(model.decode(images, num_steps=count))]
        seconds = []
        for _ in range(PASSES):
            started = _now(encoded[0].memory)
            model.decode(encoded[0], num_steps=count)
            seconds.append(_now(encoded[0].memory) - started)
        scores = metrics.score(image_ids, captions, references).metrics
        milliseconds = 1000 * statistics.median(seconds) / len(batches[0])
        points.append(SpeedPoint(count, milliseconds, scores["cider"], scores["bleu4"]))
    return points


def _now(tensor: torch.Tensor) -> float:
    """Seconds, once the tensor's device has done what it was given."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
