"""Distil an encoder, or what a captioner sees, into a backbone, on any images: `fastcap distill [folder=DIR]`.

Features on a grid (FitNets, Romero et al. 2015, arXiv 1412.6550), normalized channel by channel as in feature
distillation for recognition (Wei et al. 2022, arXiv 2205.14141), and the teacher's classes or concepts (Hinton et al.
2015, arXiv 1503.02531) with both seeing the same crop (patient teacher, Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.efficientnet_lite import EfficientNetLite, packaged_classifier
from fastcap.build import load_checkpoint
from fastcap.cli import hydra_command
from fastcap.data.dataset import ImageBatch
from fastcap.jobs.pretrain import BackbonePretraining, run
from fastcap.losses import concept_loss


class Teacher(nn.Module):
    """What the backbone learns from, features and classes of an image; nothing of it is ever trained.

    Args:
        variant: Size of the packaged EfficientNet-Lite, 0 or 2; its classes are ImageNet's, one an image.
        checkpoint: A captioner in its place, best after ``stage=concepts``; its classes are the concepts and phrases
            that it predicts, many an image.
    """

    def __init__(self, variant: int = 0, checkpoint: str | None = None) -> None:
        super().__init__()
        self.captioner = load_checkpoint(checkpoint).model if checkpoint else None
        if self.captioner is None:
            self.encoder = EfficientNetLite(variant, frozen=True, position=False)
            self.classifier = packaged_classifier(variant)
            self.feature_dim, self.num_classes = self.classifier.in_features, self.classifier.out_features
        else:
            self.feature_dim = self.captioner.backbone.feature_dim
            self.num_classes = len(self.captioner.alignment.concepts.weights)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalized images (B, 3, H, W); returns features (B, h, w, C) and logits of the classes (B, K)."""
        if self.captioner is None:
            features = self.encoder.feature_map(images)
            return features, self.classifier(features.mean((1, 2)))
        features, alignment = self.captioner.backbone(images), self.captioner.alignment
        return square(features), alignment.concepts(alignment.project(features))

    def class_loss(self, guess: Tensor, classes: Tensor) -> Tensor:
        """Compare a guess of the logits with the teacher's, (B, K)."""
        if self.captioner is not None:
            return concept_loss(guess, classes.sigmoid(), self.captioner.alignment.concepts.weights)
        ours, theirs = F.log_softmax(guess, dim=-1), F.log_softmax(classes, dim=-1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class DistillationModule(BackbonePretraining):
    """Teach a backbone the teacher's features and classes through linear heads that are thrown away afterwards.

    Args:
        backbone: As in ``BackbonePretraining``, which also takes the remaining arguments.
        teacher: Normalized images to features (B, h, w, C) and logits of classes or concepts.
        image_size: Side of the images that the backbone sees, in pixels.
        teacher_size: Side of the same images for the teacher.
    """

    def __init__(self, backbone: Any, teacher: Teacher, image_size: int, teacher_size: int, **training: Any) -> None:
        super().__init__(backbone, **training)
        self.teachers = (teacher.eval(),)  # in a tuple it is no part of the module: checkpoints leave it out
        self.image_size, self.teacher_size = image_size, teacher_size
        self.normalizer = nn.BatchNorm1d(teacher.feature_dim, affine=False)
        self.feature_head = nn.Linear(backbone.feature_dim, teacher.feature_dim)
        self.class_head = nn.Linear(backbone.feature_dim, teacher.num_classes)

    def losses(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the terms; they, the mean cosine similarity and the top-1 agreement by name."""
        with torch.no_grad():
            teacher = self.teachers[0].to(self.device)
            seen, classes = teacher(self.normalize(batch.images, self.teacher_size))
            target, classes = self.normalizer(seen.float().flatten(0, 2)).view(seen.shape), classes.float()
        features = self.backbone(self.normalize(batch.images, self.image_size))
        predicted = self.feature_head(to_grid(features, target.shape[1:3])).float()
        guess = self.class_head(features.mean(1)).float()
        cosine = F.cosine_similarity(predicted, target, dim=-1).mean()
        terms = {
            "cosine": 1 - cosine,
            "smooth_l1": F.smooth_l1_loss(predicted, target),
            "pooled": 1 - F.cosine_similarity(predicted.mean((1, 2)), target.mean((1, 2))).mean(),
            "logits": teacher.class_loss(guess, classes),
        }
        agreement = (guess.argmax(1) == classes.argmax(1)).float().mean()
        values = {"cosine": cosine, "top1_agreement": agreement} | {f"loss_{k}": v for k, v in terms.items()}
        return torch.stack(list(terms.values())).sum(), values


def square(features: Tensor) -> Tensor:
    """Lay features in raster order (B, N, D) on their grid, (B, h, h, D); no square is a ``ValueError``."""
    side = isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise ValueError(f"backbone: {features.shape[1]} features of a square image make no square grid")
    return features.unflatten(1, (side, side))


def to_grid(features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bring features of a square grid to the teacher's: averaged where it is coarser, interpolated where finer.

    Args:
        features: As ``square`` takes them. (B, N, D)
        shape: The teacher's rows and columns.

    Returns:
        (B, rows, columns, D)
    """
    grid = square(features).permute(0, 3, 1, 2)
    side = grid.shape[2]
    if side > shape[0]:
        grid = F.adaptive_avg_pool2d(grid, shape)
    elif side < shape[0]:
        grid = F.interpolate(grid, shape, mode="bilinear", align_corners=False)
    return grid.permute(0, 2, 3, 1)


@hydra_command("distill")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation cosine similarity for sweepers."""
    return run(cfg).get("val/cosine")


if __name__ == "__main__":
    main()
