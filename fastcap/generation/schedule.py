"""Masking shared by training and refinement: how many tokens are hidden, and which."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastcap.utils.rng import RandomSource, uniform

MaskSchedule = Callable[[float], float]


def linear(progress: float) -> float:
    """Share of tokens still masked after ``progress`` of the steps (Mask-Predict, arXiv 1904.09324)."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Share of tokens still masked after ``progress`` of the steps (MaskGIT, arXiv 2202.04200)."""
    return math.cos(math.pi / 2 * progress)


SCHEDULES: dict[str, MaskSchedule] = {"linear": linear, "cosine": cosine}


def num_to_remask(lengths: Tensor, step: int, num_steps: int, schedule: MaskSchedule) -> Tensor:
    """Tokens of each caption to hide again after ``step`` (1-based) of ``num_steps``; zero after the last.

    Args:
        lengths: Content tokens. (B,)
        step: Steps done.
        num_steps: Steps in all.
        schedule: Share of tokens masked at a progress in [0, 1].

    Returns:
        Counts, below the length. (B,)
    """
    if step >= num_steps:
        return torch.zeros_like(lengths)
    # The small term keeps e.g. 10 * (1 - 0.9) at 1 rather than at 0.999...
    return (lengths * schedule(step / num_steps) + 1e-6).long().clamp(max=lengths - 1)


def lowest(score: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` lowest scores of each row; equal scores go by position, so the choice never varies.

    Args:
        score: (B, L)
        count: (B,)

    Returns:
        True where a score is among the lowest. (B, L)
    """
    # Counting what comes before needs no sort: ONNX has no stable one.
    own, other = score.unsqueeze(-1), score.unsqueeze(-2)
    earlier = torch.ones(score.shape[-1], score.shape[-1], dtype=torch.bool, device=score.device).tril(-1)
    rank = ((other < own) | ((other == own) & earlier)).sum(-1)
    return rank < count.unsqueeze(-1)


def sample_mask(lengths: Tensor, max_length: int, full_share: float, random: RandomSource) -> Tensor:
    """Choose training masks: k of L tokens with k uniform in 1..L (CMLM, arXiv 1904.09324), some captions whole.

    Args:
        lengths: Content tokens. (B,)
        max_length: Positions L of the padded batch.
        full_share: Share of captions masked whole, as refinement's first step sees them.
        random: Source of random numbers; the masks do not depend on the device.

    Returns:
        True where a token is to be hidden; at least one a caption, never padding. (B, L)
    """
    device, lengths = lengths.device, lengths.cpu()
    draw = uniform(random, lengths.shape[0], max_length + 2)
    count = (draw[:, 0] * lengths).long() + 1
    count = torch.where(draw[:, 1] < full_share, lengths, count)
    padding = torch.arange(max_length) >= lengths.unsqueeze(1)
    return lowest(draw[:, 2:].masked_fill(padding, 2.0), count).to(device)
