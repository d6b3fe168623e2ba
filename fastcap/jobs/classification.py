"""Supervised pretraining: name the class of an image (ImageNet's layout)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.data.images import ImageBatch
from fastcap.jobs.base import BackbonePretraining


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
        logits = self.head(self.backbone(self.standardise(batch.images, self.image_size)).mean(1))
        smoothing = self.label_smoothing if self.training else 0.0
        ranked = logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        accuracy = {"top1": ranked[:, 0].float().mean(), "top5": ranked.any(1).float().mean()}
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=smoothing), accuracy
