"""The one decoder: scores every position of a masked caption at once, given the image.

Training calls ``forward``; refinement calls ``prepare`` once an image and ``denoise`` at each step. ``forward`` is
made of those two, so what is trained is what is shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcap.decoder.attention import JoinedMemory, SoftmaxSelfAttention
from fastcap.decoder.moe import (
    Expert,
    ExpertCache,
    ExpertMixture,
    GatingNetwork,
    Routing,
    join_memories,
    prepare_layers,
)
from fastcap.decoder.vocabulary import VocabularyHead
from fastcap.types import DecoderOutput


@dataclass
class DecoderCache:
    """All that decoding needs of a batch of images.

    Attributes:
        routing: Expert weights (B, E) and the gate's scores.
        context: The image as one vector, added to every position. (B, 1, D)
        layers: Each layer's experts with their image-only values.
    """

    routing: Routing
    context: Tensor
    layers: list[list[ExpertCache]]

    @property
    def expert_weights(self) -> Tensor:
        """Weight of each expert for each image; rows sum to one. (B, E)."""
        return self.routing.weights


class DecoderLayer(nn.Module):
    """Self-attention over the caption, shared by all images; then the image's experts."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        self_attention: Callable[[int], nn.Module],
        expert: Callable[[int], Expert],
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.self_attention = self_attention(dim)
        self.dropout = nn.Dropout(dropout)
        self.mixture = ExpertMixture(num_experts, dim, expert)

    def forward(self, x: Tensor, pad: Tensor | None, caches: list[ExpertCache], num_images: int) -> Tensor:
        """(B * K, L, D) -> (B * K, L, D)."""
        x = x + self.dropout(self.self_attention(self.norm(x), pad))
        # All captions of an image are one long row of queries: the image-only values need no copies.
        by_image = x.view(num_images, -1, x.shape[-1])
        return x + self.mixture(by_image, caches).view_as(x)


class MoEDecoder(nn.Module):
    """Bidirectional caption decoder with image-routed experts.

    A position is embedded by its distance from the caption's start and from its end, which also tells the decoder the
    length, and by the image as a whole: at refinement's first step all words are [MASK], and without it every query
    would start from its position alone. Word embedding and vocabulary head share one matrix.

    Args:
        vocab_size: Words V, special tokens included.
        max_length: Longest caption, in tokens.
        pad_id: Id of [PAD].
        dim: Width D.
        num_layers: Layers.
        num_experts: Experts E of each layer.
        top_k: Experts an image; the same in training and at inference.
        self_attention: Makes a self-attention from the width; softmax if left out.
        expert: Makes one expert from the width; RALA cross-attention and FFN if left out.
        dropout: Dropout on embeddings and self-attention.
        balance_weight: Weight of the load-balance term in ``aux_loss``.
        z_weight: Weight of the gate's z-loss (ST-MoE, arXiv 2202.08906) in ``aux_loss``.
    """

    causal = False

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        pad_id: int,
        dim: int = 256,
        num_layers: int = 3,
        num_experts: int = 4,
        top_k: int = 1,
        self_attention: Callable[[int], nn.Module] = SoftmaxSelfAttention,
        expert: Callable[[int], Expert] = Expert,
        dropout: float = 0.1,
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.num_experts = num_experts
        self.balance_weight = balance_weight
        self.z_weight = z_weight
        self.word = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.from_start = nn.Embedding(max_length, dim)
        self.from_end = nn.Embedding(max_length, dim)
        self.context = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.gate = GatingNetwork(dim, num_experts, top_k)
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_experts, self_attention, expert, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = VocabularyHead()
        self.joined: JoinedMemory | None = None
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        # Words are scaled up again on the way in: there, words and positions weigh alike, and more than the context.
        nn.init.normal_(self.word.weight, std=dim**-0.5)
        for position in (self.from_start, self.from_end):
            nn.init.normal_(position.weight, std=0.7)

    def prepare(self, memory: Tensor) -> DecoderCache:
        """Route each image and compute its experts' image-only values. memory: (B, N, D)."""
        routing, context = self.gate(memory), self.context(memory.mean(1, keepdim=True))
        layers = prepare_layers(self.layers, memory, routing.weights, self.joined)
        return DecoderCache(routing, context, layers)

    def join(self) -> None:
        """Prepare all experts' image-only values at once from now on, where possible; for inference."""
        self.joined = join_memories(self.layers, self.gate.top_k)

    def denoise(self, tokens: Tensor, pad: Tensor | None, cache: DecoderCache) -> Tensor:
        """Score every position.

        Args:
            tokens: Caption ids, some of them [MASK]; the K captions of an image in consecutive rows. (B * K, L)
            pad: True where a position is padding; None where none is. (B * K, L)
            cache: From ``prepare`` on the B images.

        Returns:
            Logits. (B * K, L, V)
        """
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        behind = ahead.flip(0) if pad is None else ((~pad).sum(1, keepdim=True) - 1 - ahead).clamp(min=0)
        x = self.dim**0.5 * self.word(tokens) + self.from_start(ahead) + self.from_end(behind)
        num_images = cache.context.shape[0]
        x = self.dropout((x.view(num_images, -1, self.dim) + cache.context).view_as(x))
        for layer, caches in zip(self.layers, cache.layers, strict=True):
            x = layer(x, pad, caches, num_images)
        return self.head(self.norm(x), self.word.weight, self.head_bias)

    def forward(self, tokens: Tensor, features: Tensor, pad: Tensor) -> DecoderOutput:
        """Score every caption position at once, given the image.

        Args:
            tokens: Caption ids, some of them [MASK]. (B * K, L)
            features: Image memory, as ``CrossModalFeatureAlignment.project`` gives it. (B, N, D)
            pad: True where a position is padding. (B * K, L)

        Returns:
            Logits (B * K, L, V), the weighted load-balance terms (scalar) and the expert weights (B, E).
        """
        cache = self.prepare(features)
        return self.output(self.denoise(tokens, pad, cache), cache)

    def output(self, logits: Tensor, cache: DecoderCache) -> DecoderOutput:
        """Join logits with what the gate has to say of the batch."""
        routing = cache.routing
        aux_loss = routing.loss(self.balance_weight, self.z_weight)
        return DecoderOutput(logits, aux_loss, routing.weights)
