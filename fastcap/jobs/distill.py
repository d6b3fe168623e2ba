"""Distil a packaged ImageNet encoder into a backbone, on any images: `fastcap distill [folder=DIR]`.

Features on a grid (FitNets, Romero et al. 2015, arXiv 1412.6550), normalized channel by channel as in feature
distillation for recognition (Wei et al. 2022, arXiv 2205.14141), and the teacher's classes (Hinton et al. 2015,
arXiv 1503.02531) with both seeing the same crop (patient teacher, Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.efficientnet_lite import EfficientNetLite, packaged_classifier
from fastcap.cli import hydra_command
from fastcap.data.images import ImageBatch
from fastcap.jobs.pretrain import BackbonePretraining, run


@dataclass(frozen=True)
class DistillationWeights:
    """Weights of the loss's terms; a term of weight zero is not computed.

    Attributes:
        cosine: Of 1 - cosine similarity, position by position.
        smooth_l1: Of the smooth L1 distance, position by position.
        pooled: Of 1 - cosine similarity of the means over positions.
        logits: Of the Kullback-Leibler divergence from the teacher's 1000 ImageNet classes.
        temperature: Of those classes' distributions.

    Raises:
        ValueError: If a weight is negative, all are zero, or the temperature is not positive.
    """

    cosine: float = 1.0
    smooth_l1: float = 1.0
    pooled: float = 1.0
    logits: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        terms = (self.cosine, self.smooth_l1, self.pooled, self.logits)
        if min(terms) < 0 or max(terms) == 0 or self.temperature <= 0:
            raise ValueError(f"module.weights must not be negative nor all zero, the temperature positive: {self}")


class Teacher(nn.Module):
    """Packaged EfficientNet-Lite with its classifier; nothing of it is ever trained.

    Args:
        variant: 0 or 2, the size.
    """

    def __init__(self, variant: int = 0) -> None:
        super().__init__()
        self.encoder = EfficientNetLite(variant, frozen=True, position=False)
        self.classifier = packaged_classifier(variant)
        self.feature_dim, self.num_classes = self.classifier.in_features, self.classifier.out_features
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalized images (B, 3, H, W); returns features (B, h, w, C) and class logits (B, 1000)."""
        features = self.encoder.feature_map(images)
        return features, self.classifier(features.mean((1, 2)))


class ChannelNormalizer(nn.Module):
    """Normalize each channel by the running mean and deviation of what it saw in training.

    Args:
        dim: Channels C.
        floor: Least share that a new batch has in the running estimate.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, floor: float = 0.01) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., C); in training learn from it first."""
        x = x.float()
        if self.training:
            self.batches += 1
            share = max(1 / int(self.batches), self.floor)
            flat = x.detach().flatten(0, -2)
            self.mean.lerp_(flat.mean(0), share)
            self.variance.lerp_((flat - self.mean).square().mean(0), share)
        return (x - self.mean) * (self.variance + 1e-4).rsqrt()


class DistillationModule(BackbonePretraining):
    """Teach a backbone the teacher's features and classes through linear heads that are thrown away afterwards.

    Args:
        backbone: As in ``BackbonePretraining``, which also takes the remaining arguments.
        teacher: Normalized images to features (B, h, w, C) and class logits.
        weights: Weights of the loss's terms.
        image_size: Side of the images that the backbone sees, in pixels.
        teacher_size: Side of the same images for the teacher.
    """

    helpers = ("teacher",)

    def __init__(
        self,
        backbone: Any,
        teacher: Teacher,
        weights: DistillationWeights,
        image_size: int,
        teacher_size: int,
        **training: Any,
    ) -> None:
        super().__init__(backbone, **training)
        self.teacher, self.weights = teacher, weights
        self.image_size, self.teacher_size = image_size, teacher_size
        self.normalizer = ChannelNormalizer(teacher.feature_dim)
        on_features = max(weights.cosine, weights.smooth_l1, weights.pooled) > 0
        self.feature_head = nn.Linear(backbone.feature_dim, teacher.feature_dim) if on_features else None
        self.class_head = nn.Linear(backbone.feature_dim, teacher.num_classes) if weights.logits > 0 else None

    def losses(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum; its terms, the mean cosine similarity and the top-1 agreement by name."""
        weights = self.weights
        values: dict[str, Tensor] = {}
        with torch.inference_mode():
            seen, classes = self.teacher(self.normalize(batch.images, self.teacher_size))
        target, classes = self.normalizer(seen.clone()), classes.float().clone()  # clones: autograd keeps them
        features = self.backbone(self.normalize(batch.images, self.image_size))
        terms: dict[str, Tensor] = {}
        if self.feature_head is not None:
            predicted = self.feature_head(to_grid(features, target.shape[1:3])).float()
            values["cosine"] = F.cosine_similarity(predicted, target, dim=-1).mean()
            terms["cosine"] = 1 - values["cosine"]
            terms["smooth_l1"] = F.smooth_l1_loss(predicted, target)
            terms["pooled"] = 1 - F.cosine_similarity(predicted.mean((1, 2)), target.mean((1, 2))).mean()
        if self.class_head is not None:
            guess = self.class_head(features.mean(1)).float()
            terms["logits"] = divergence(guess, classes, weights.temperature)
            values["top1_agreement"] = (guess.argmax(1) == classes.argmax(1)).float().mean()
        values |= {f"loss_{name}": term for name, term in terms.items()}
        return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum(), values


def to_grid(features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bring features of a square grid to the teacher's: averaged where it is coarser, interpolated where finer.

    Args:
        features: In raster order. (B, N, D)
        shape: The teacher's rows and columns.

    Returns:
        (B, rows, columns, D)

    Raises:
        ValueError: If the features make no square.
    """
    side = isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise ValueError(f"backbone: {features.shape[1]} features of a square image make no square grid")
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    if side > shape[0]:
        grid = F.adaptive_avg_pool2d(grid, shape)
    elif side < shape[0]:
        grid = F.interpolate(grid, shape, mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1)


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's classes from the teacher's, scaled to the temperature. (B, classes) both."""
    ours, theirs = (F.log_softmax(x / temperature, dim=-1) for x in (logits, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


@hydra_command("distill")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation cosine similarity for sweepers."""
    return run(cfg).get("val/cosine")


if __name__ == "__main__":
    main()
