"""Quality against speed: the same checkpoint with few and with many refinement steps."""

from __future__ import annotations

import copy
import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from fastcap.metrics import CaptionMetrics
from fastcap.model import FastCap
from fastcap.module import CaptioningModule
from fastcap.reporting.pictures import SpeedPoint, draw_curve
from fastcap.training import open_checkpoint
from fastcap.training.media import media_loggers, media_step, read_picture
from fastcap.types import CaptionBatch

log = logging.getLogger(__name__)


class SpeedQuality(L.Callback):
    """At the end of training measure CIDEr against decoding time for several numbers of refinement steps.

    Files in the run's folder: ``speed_quality.csv`` and ``speed_quality.png``. A twin of the model is measured, with
    the best checkpoint's weights where there is one, so nothing of the run is touched. Images are those of the last
    validation; the time is the decoder's alone (length candidates included), in the validation's batches. A decoder
    that writes word after word has no steps, and no curve.

    Args:
        steps: Numbers of refinement steps.
        max_images: At most so many images, the split's first.
    """

    def __init__(self, steps: Sequence[int] = (1, 2, 4, 8), max_images: int = 500) -> None:
        self.steps = tuple(steps)
        self.max_images = max_images
        self._batches: list[CaptionBatch] = []
        self._twin: FastCap | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the model, all but its weights, before a strategy shares it out over processes."""
        assert isinstance(pl_module, CaptioningModule)
        if stage == "fit":
            nowhere = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in pl_module.parameters()}
            self._twin = copy.deepcopy(pl_module.model, nowhere)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last validation's images."""
        if trainer.state.fn == TrainerFn.FITTING:
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
        count = sum(map(len, self._batches))
        if trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero and count < self.max_images:
            self._batches.append(_first(batch, self.max_images - count))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, write and log; what fails is a warning."""
        assert isinstance(pl_module, CaptioningModule)
        batches, self._batches = self._batches, []
        model, self._twin = self._twin, None
        if model is None or not self.steps or model.decoder.causal:
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        weights = {} if best else trainer.strategy.lightning_module_state_dict()  # every process takes part
        if not batches:
            return
        try:
            state = open_checkpoint(best)["state_dict"] if best else weights
            state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
            model.load_state_dict(state, assign=True)
            model.eval().to(pl_module.device)
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
            f"{sum(map(len, batches))} validation images in batches of {len(batches[0])} on {batches[0].images.device},"
            f" {threads} thread{'s' * (threads > 1)}; the decoder alone"
        )
        path = folder / "speed_quality.png"
        draw_curve(path, points, chosen, note)
        for logger in media_loggers(trainer):
            logger.log_curve("speed_quality", [asdict(point) for point in points], "decode_ms")
            logger.log_pictures("speed_quality/picture", [read_picture(path)], [note], media_step(trainer))


def measure(
    model: FastCap, module: CaptioningModule, batches: Sequence[CaptionBatch], steps: Sequence[int]
) -> list[SpeedPoint]:
    """Caption the batches with each number of steps; the model's own settings are changed, so pass a copy."""
    encoded = [model.encode(batch.images) for batch in batches]
    model.describe(encoded[0])  # warm up
    points = []
    metric = CaptionMetrics(**{**module.metric_options, "names": ["bleu", "cider"]}, sync_on_compute=False)
    for count in steps:
        model.refinement.num_steps = count
        metric.reset()
        seconds = 0.0
        for batch, images in zip(batches, encoded, strict=True):
            started = _now(images.memory)
            refinement = model.describe(images)
            seconds += _now(images.memory) - started
            metric.update(batch.image_ids.tolist(), module.texts(refinement), batch.references)
        scores = metric.compute()
        milliseconds = 1000 * seconds / sum(map(len, batches))
        points.append(SpeedPoint(count, milliseconds, scores["cider"], scores["bleu4"]))
    return points


def _now(tensor: Tensor) -> float:
    """Seconds, once the tensor's device has done what it was given."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def _first(batch: CaptionBatch, count: int) -> CaptionBatch:
    return CaptionBatch(
        batch.images[:count],
        batch.image_ids[:count],
        batch.tokens[:count],
        batch.lengths[:count],
        batch.references[:count],
    )
