"""Pretraining of a backbone: what every kind shares, and the supervised kind (naming the class of an image)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastcap.backbone.weights import save_backbone
from fastcap.data.images import ImageBatch
from fastcap.optim import clip_gradients, parameter_groups
from fastcap.types import IMAGE_MEAN, IMAGE_STD
from fastcap.utils.rng import step_seed

WEIGHTS_FILE = "backbone.safetensors"


class BackbonePretraining(L.LightningModule):
    """Train a backbone on images; after every validation its weights alone lie in ``backbone.safetensors``.

    Subclasses say what is lost in ``losses`` and may name modules that are not trained in ``helpers``.

    Args:
        backbone: Normalized images (B, 3, H, W) to features (B, N, D).
        config: The run's configuration, as plain data; its node ``backbone`` is stored beside the weights.
        optimizer: Makes the optimiser from parameter groups.
        schedule: Makes the learning-rate schedule from (optimizer, total_steps).
        weight_decay: Of matrices; biases, norms and embeddings do not decay.
        seed: Root of all randomness.
    """

    image_mean: Tensor
    image_std: Tensor
    helpers: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: nn.Module,
        config: Mapping[str, Any],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.config = dict(config)
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.weight_decay, self.seed = weight_decay, seed
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
        # Stochastic depth follows from the position in the run, so that a resumed run equals an unbroken one.
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
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
            save_backbone(self.weights_path, self.backbone, self.config["backbone"])

    @property
    def weights_path(self) -> Path:
        """Where the weights go."""
        return Path(self.trainer.default_root_dir) / WEIGHTS_FILE

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over what is trained, and its schedule in steps."""
        optimizer = self.make_optimizer(parameter_groups(self, self.weight_decay))
        schedule = self.make_schedule(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients' norm."""
        clip_gradients(optimizer, gradient_clip_val)

    def trained_state(self) -> dict[str, Tensor]:
        """Weights and buffers without those of helpers, which never change."""
        return {k: v for k, v in self.state_dict().items() if k.partition(".")[0] not in self.helpers}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave helpers' weights out, and add the configuration."""
        checkpoint["state_dict"] = self.trained_state()
        checkpoint["fastcap"] = {"config": self.config}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put helpers' weights back in."""
        own = self.state_dict()
        checkpoint["state_dict"] |= {k: v for k, v in own.items() if k.partition(".")[0] in self.helpers}


class ClassificationModule(BackbonePretraining):
    """Cross-entropy on the classes, through a linear head on pooled features that is thrown away afterwards.

    Args:
        backbone: As in ``BackbonePretraining``, which also takes the remaining arguments.
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
