"""Mixture of experts routed by the image: a gate, experts, and the load-balance terms.

One decision an image is shared by all layers, all caption tokens and all refinement steps (image-level routing, as in
Mobile V-MoE, arXiv 2309.04354), so at inference only the chosen experts' weights are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.decoder.attention import RankAugmentedCrossAttention
from fastcap.types import ExpertCache, ImageCache
from fastcap.utils.distributed import total


def routing_loss(cache: ImageCache, balance_weight: float, z_weight: float) -> Tensor:
    """Compute what routing adds to the training loss.

    Args:
        cache: With the gate's logits.
        balance_weight: Weight of Switch's load-balance term, which is one at perfect balance.
        z_weight: Weight of the z-loss, the mean squared log-partition of the logits (ST-MoE, arXiv 2202.08906).

    Returns:
        The weighted sum; zero where nothing is routed. ()
    """
    if cache.gate_logits is None:
        return cache.expert_weights.new_zeros(())
    z_loss = cache.gate_logits.logsumexp(-1).square().mean()
    return balance_weight * balance_loss(cache.gate_logits.softmax(-1)) + z_weight * z_loss


def balance_loss(probabilities: Tensor) -> Tensor:
    """Load balance of Switch Transformer (arXiv 2101.03961): E sum_e f_e P_e, with its minimum of one at uniformity.

    Args:
        probabilities: Gate probabilities. (B, E)

    Returns:
        Scalar; f_e is the share of images whose first choice is e (no gradient), P_e the mean probability of e.
    """
    num_experts = probabilities.shape[-1]
    first = F.one_hot(probabilities.argmax(-1), num_experts).to(probabilities.dtype).sum(0)
    share = total(first)  # of all processes' images; probabilities are averaged over processes with the gradients
    return num_experts * (share / share.sum() * probabilities.mean(0)).sum()


def select_experts(probabilities: Tensor, top_k: int) -> Tensor:
    """Keep the ``top_k`` largest probabilities of each image and let them sum to one.

    With one expert chosen its weight is exactly one, and the gradient reaches the gate as if the weight were the
    probability itself (straight-through); otherwise renormalising would leave the gate without any.

    Args:
        probabilities: Gate probabilities. (B, E)
        top_k: Experts an image.

    Returns:
        Weights, zero where an expert is not chosen. (B, E)
    """
    value, index = probabilities.topk(top_k, dim=-1)
    value = value + (1.0 - value).detach() if top_k == 1 else value / value.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index, value)


class GatingNetwork(nn.Module):
    """Weigh the experts for each image from its mean patch.

    Args:
        dim: Width D.
        num_experts: Experts E. With one expert there is nothing to decide and no parameter.
        top_k: Experts an image; ``num_experts`` gives the weighted sum of all.

    Raises:
        ValueError: If top_k is not in 1..num_experts.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"decoder.top_k = {top_k} must be in 1..num_experts = {num_experts}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.score = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_experts)) if num_experts > 1 else nn.Identity()

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """Route each image. memory: (B, N, D); returns weights (B, E), and the logits (B, E) if there is a choice."""
        if self.num_experts == 1:
            return memory.new_ones(memory.shape[0], 1), None
        logits = self.score(memory.mean(1)).float()
        return select_experts(logits.softmax(-1), self.top_k).to(memory.dtype), logits


class Expert(nn.Module):
    """One expert of one layer: reads the image by RALA, then an FFN; returns what it adds to the tokens.

    Args:
        dim: Width D.
        cross_attention: Makes the cross-attention from the width; RALA if left out.
        ffn_ratio: Hidden width of the FFN over D.
        dropout: Dropout on what each part adds.
    """

    def __init__(
        self,
        dim: int,
        cross_attention: Callable[[int], nn.Module] = RankAugmentedCrossAttention,
        ffn_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(dim * ffn_ratio)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention: Any = cross_attention(dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def prepare(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Compute what depends on the image alone. memory: (B, N, D)."""
        return self.cross_attention.prepare(memory)

    def forward(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """Return the change to the tokens. (B, L, D) -> (B, L, D)."""
        read = self.dropout(self.cross_attention(self.cross_norm(x), prepared))
        return read + self.dropout(self.ffn(self.ffn_norm(x + read)))


class ExpertMixture(nn.Module):
    """The experts of one layer. Only those that some image chose are run.

    In training an expert that nobody chose runs on an empty batch, so that each of its parameters has a (zero)
    gradient: what distributed training expects.

    Args:
        num_experts: Experts E.
        dim: Width D.
        expert: Makes one expert from the width.
    """

    def __init__(self, num_experts: int, dim: int, expert: Callable[[int], Expert]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(expert(dim) for _ in range(num_experts))

    def prepare(self, memory: Tensor, weights: Tensor) -> list[ExpertCache]:
        """Select images and compute image-only values. memory: (B, N, D), weights: (B, E)."""
        # In an export no shape may depend on the data: every expert serves every image.
        counts = None if torch.compiler.is_exporting() else (weights > 0).sum(0).tolist()
        caches = []
        for index, module in enumerate(self.experts):
            expert = cast(Expert, module)
            if counts is None or counts[index] == memory.shape[0]:
                caches.append(ExpertCache(index, None, weights[:, index, None, None], expert.prepare(memory)))
            elif counts[index] or self.training:
                rows = weights[:, index].nonzero().squeeze(1)
                prepared = expert.prepare(memory.index_select(0, rows))
                caches.append(ExpertCache(index, rows, weights[rows, index, None, None], prepared))
        return caches

    def forward(self, x: Tensor, caches: list[ExpertCache]) -> Tensor:
        """Return the weighted sum of what the chosen experts add. (B, L, D) -> (B, L, D)."""
        total = torch.zeros_like(x)
        for cache in caches:
            expert = self.experts[cache.index]
            if cache.rows is None:
                total = total + cache.weight * expert(x, cache.prepared)
            else:
                change = cache.weight * expert(x.index_select(0, cache.rows), cache.prepared)
                total = total.index_add(0, cache.rows, change.to(total.dtype))
        return total
