"""Pretrain a backbone on class folders (ImageNet's layout): `fastcap pretrain data_dir=DIR`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.weights import save_backbone
from fastcap.build import build_backbone, build_trainer, construct
from fastcap.cli import check_values, hydra_command, print_table
from fastcap.data.datamodule import ImageDataModule
from fastcap.data.dataset import ImageBatch
from fastcap.module import TrainedModule
from fastcap.training.checkpoints import fill
from fastcap.training.loggers import closing_loggers
from fastcap.training.machine import seed_run
from fastcap.training.resume import only_writer, settle_resume
from fastcap.training.saving import exit_if_preempted
from fastcap.types import IMAGE_MEAN, IMAGE_STD
from fastcap.utils.files import write_json

WEIGHTS_FILE = "backbone.safetensors"


class BackbonePretraining(TrainedModule):
    """Train a backbone on images; after every validation its weights alone lie in ``backbone.safetensors``.

    Subclasses say what is lost in ``losses``.

    Args:
        backbone: Normalized images (B, 3, H, W) to features (B, N, D).
        config: The run's configuration, as plain data; its node ``backbone`` is stored beside the weights.
        **training: As in ``TrainedModule``.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, backbone: nn.Module, config: Mapping[str, Any], **training: Any) -> None:
        super().__init__(**training)
        self.backbone: Any = backbone
        self.config = dict(config)
        self.register_buffer("image_mean", 255 * torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    def normalize(self, images: Tensor, size: int) -> Tensor:
        """Resize uint8 pixels (B, 3, S, S) to ``size`` and normalize them; (B, 3, size, size)."""
        if images.shape[-1] != size:
            images = images.contiguous(memory_format=torch.channels_last)
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std

    def losses(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is minimised, and everything worth logging by name."""
        raise NotImplementedError

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        self.seed_step(batch_idx)  # stochastic depth
        loss, values = self.losses(batch)
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()})
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Log the same on unchanged images."""
        loss, values = self.losses(batch)
        size = len(batch)
        self.log("val/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, batch_size=size, sync_dist=True)

    def on_validation_end(self) -> None:
        """Write the weights, so that a run that is killed leaves recent ones."""
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            save_backbone(Path(self.trainer.default_root_dir) / WEIGHTS_FILE, self.backbone, self.config["backbone"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration."""
        checkpoint["fastcap"] = {"config": self.config}


class ClassificationModule(BackbonePretraining):
    """Cross-entropy on the classes, through a linear head on pooled features that is thrown away afterwards.

    Args:
        backbone: As in ``BackbonePretraining``, which takes the remaining arguments too.
        classes: Names of the classes.
        image_size: Side of the images that the backbone sees, in pixels.
        label_smoothing: Of the training loss.
    """

    def __init__(
        self, backbone: Any, classes: Sequence[str], image_size: int, label_smoothing: float = 0.1, **training: Any
    ) -> None:
        super().__init__(backbone, **training)
        self.image_size, self.label_smoothing = image_size, label_smoothing
        self.head = nn.Linear(backbone.feature_dim, len(classes))

    def losses(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy, and the shares of images whose class came first and among the first five."""
        logits = self.head(self.backbone(self.normalize(batch.images, self.image_size)).mean(1))
        smoothing = self.label_smoothing if self.training else 0.0
        ranked = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        accuracy = {"top1": ranked[:, 0].float().mean(), "top5": ranked.any(1).float().mean()}
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing), accuracy


def pretrain_backbone(
    cfg: DictConfig,
    run_dir: Path,
    facts: Callable[[ImageDataModule], dict[str, Any]] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Run a job and return the last validation's metrics.

    Its folder then holds ``backbone.safetensors``, ``checkpoints/last.ckpt`` and ``results.json``.

    Args:
        cfg: With the nodes images, module, backbone, optim, trainer, logger and callbacks.
        run_dir: The run's folder.
        facts: Arguments of the module that only the images know.
        overrides: What the command line changed: loggers name the run by it.
    """
    started = time.perf_counter()
    cfg, resumed = settle_resume(cfg, run_dir)
    seed_run(cfg.seed)
    pixels = max(int(cfg.image_size), int(cfg.get("teacher_size") or 0))
    images: ImageDataModule = construct(cfg.images, image_size=pixels, seed=cfg.seed)
    module: BackbonePretraining = construct(
        cfg.module,
        backbone=build_backbone(cfg, fresh=not cfg.resume),
        config=OmegaConf.to_container(cfg, resolve=True),
        optimizer=functools.partial(construct, cfg.optim.optimizer),
        schedule=functools.partial(construct, cfg.optim.schedule),
        weight_decay=cfg.optim.weight_decay,
        seed=cfg.seed,
        **(facts(images) if facts else {}),
    )
    if resumed:
        fill(module, cfg.resume, resumed.get("state_dict", {}))
    trainer = build_trainer(cfg, run_dir, overrides, "train", resumed)
    with closing_loggers(trainer.loggers):
        trainer.fit(module, datamodule=images, ckpt_path=cfg.resume, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        minutes = (time.perf_counter() - started) / 60
        results = {
            "metrics": metrics,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "precision": trainer.precision,
            "minutes": minutes,
            "parameters": sum(p.numel() for p in module.backbone.parameters()),
        }
        write_json(run_dir / "results.json", results)
        title = f"{cfg.name}: {trainer.current_epoch} epochs, {minutes:.1f} minutes"
        print_table(title, {k: v for k, v in sorted(metrics.items()) if k.startswith("val/")})
        weights = run_dir / WEIGHTS_FILE
        print(f'Weights     {weights}\nNext        make train ARGS="backbone=... init.backbone={weights}"')
    return metrics


@hydra_command("pretrain")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation accuracy for sweepers."""
    return run(cfg, lambda images: {"classes": images.classes}).get("val/top1")


def run(cfg: DictConfig, facts: Callable[[ImageDataModule], dict[str, Any]] | None = None) -> dict[str, float]:
    """Run a job in the folder that Hydra made for it, which nobody else then writes to."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    check_values(str(job.job.config_name), cfg, overrides)
    with exit_if_preempted(), only_writer(run_dir):
        return pretrain_backbone(cfg, run_dir, facts, overrides)


if __name__ == "__main__":
    main()
