"""Optimiser: parameter groups, gradient clipping and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(
    module: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and the rest (biases, norms, embeddings), which do not.

    Args:
        module: The whole model.
        weight_decay: Of the matrices.
        lr_scales: Learning rate of some parts, by name, over that of the rest; ``scale_learning_rates`` applies it.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    scales = dict(lr_scales or {}).items()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings
            scale = next((scale for part, scale in scales if name.startswith(f"{part}.")), 1.0)
            groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def scale_learning_rates(optimizer: Optimizer) -> None:
    """Multiply each group's learning rate by the scale that ``parameter_groups`` gave it."""
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)


def clip_gradients(optimizer: Optimizer, max_norm: float | None) -> None:
    """Scale all gradients down to a common norm; None or zero leaves them.

    Lightning's own clipping refuses fused optimisers under bf16-mixed, though no scaling of losses is involved there.
    """
    if max_norm:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_share: float = 0.05, final_share: float = 0.01
) -> LambdaLR:
    """Rise linearly, then fall along a cosine (SGDR, arXiv 1608.03983).

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimiser steps of the whole run.
        warmup_share: Share of the steps spent rising.
        final_share: Last learning rate over the peak.
    """
    warmup = max(1, round(total_steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmup_stable_decay(
    optimizer: Optimizer,
    total_steps: int,
    warmup_share: float = 0.05,
    decay_share: float = 0.2,
    final_share: float = 0.01,
) -> LambdaLR:
    """Rise linearly, stay at the peak, and fall linearly at the end (WSD, MiniCPM, arXiv 2404.06395).

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimiser steps of the whole run.
        warmup_share: Share of the steps spent rising.
        decay_share: Share of the steps spent falling.
        final_share: Last learning rate over the peak.
    """
    warmup, decay = max(1, round(total_steps * warmup_share)), max(1, round(total_steps * decay_share))

    def factor(step: int) -> float:
        rising, falling = (step + 1) / warmup, (total_steps - step) / decay
        return max(final_share, min(1.0, rising, falling))

    return LambdaLR(optimizer, factor)
