"""The parallel decoder: scores every position of a masked caption at once, given the image.

Training calls ``forward``; refinement calls ``prepare`` once an image and ``denoise`` at each step. ``forward`` is
made of those two, so what is trained is what is shipped. Layers and ``ExpertDecoder``, all but the order in which words
are written, are the autoregressive baseline's too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.decoder.attention import SoftmaxSelfAttention
from fastcap.decoder.moe import Expert, ExpertMixture, GatingNetwork, routing_loss
from fastcap.types import DecoderOutput, ExpertCache, ImageCache


class DecoderLayer(nn.Module):
    """Self-attention over the caption, shared by all images; then the image's experts.

    Args:
        dim: Width D.
        num_experts: Experts E.
        self_attention: Makes a self-attention from the width.
        expert: Makes one expert from the width.
        dropout: Dropout on the self-attention's output.
    """

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
        """Mix tokens, then read the image. (B * K, L, D) -> (B * K, L, D)."""
        x = x + self.dropout(self.self_attention(self.norm(x), pad))
        return self.read_image(x, caches, num_images)

    def read_image(self, x: Tensor, caches: list[ExpertCache], num_images: int) -> Tensor:
        """Run each image's experts over all of its captions. (B * K, L, D) -> (B * K, L, D)."""
        # All captions of an image are one long row of queries: the image-only values need no copies.
        by_image = x.view(num_images, -1, x.shape[-1])
        return x + self.mixture(by_image, caches).view_as(x)


class ExpertDecoder(nn.Module):
    """Base of the decoders: everything but the order in which words are written.

    Word embedding and vocabulary head share one matrix. The image as one vector is added to every position: without it
    the first pass over nothing but [MASK] would query the image from positions alone.

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

    causal: ClassVar[bool]
    layer_type: ClassVar[type[DecoderLayer]]
    attention_type: ClassVar[type[nn.Module]]
    positions: ClassVar[Mapping[str, int]]  # position codes by name: how many embeddings more than max_length
    from_start: nn.Embedding

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        pad_id: int,
        dim: int = 256,
        num_layers: int = 3,
        num_experts: int = 4,
        top_k: int = 1,
        self_attention: Callable[[int], nn.Module] | None = None,
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
        for name, more in self.positions.items():
            setattr(self, name, nn.Embedding(max_length + more, dim))
        self.context = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.gate = GatingNetwork(dim, num_experts, top_k)
        attention = self_attention or self.attention_type
        self.layers = nn.ModuleList(
            self.layer_type(dim, num_experts, attention, expert, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        # Words are scaled up again on the way in: there, words and positions weigh alike, and more than the context.
        nn.init.normal_(self.word.weight, std=dim**-0.5)
        for name in self.positions:
            nn.init.normal_(getattr(self, name).weight, std=0.7)

    def prepare(self, memory: Tensor) -> ImageCache:
        """Route each image and compute its experts' image-only values. memory: (B, N, D)."""
        (weights, logits), context = self.gate(memory), self.context(memory.mean(1, keepdim=True))
        layers = [cast(DecoderLayer, layer).mixture.prepare(memory, weights) for layer in self.layers]
        return ImageCache(weights, logits, context, layers)

    def embed(self, tokens: Tensor, cache: ImageCache, *positions: Tensor) -> Tensor:
        """Add up words, position codes (L, D) or (B * K, L, D), and the image. (B * K, L) -> (B * K, L, D)."""
        x = self.dim**0.5 * self.word(tokens)
        for position in positions:
            x = x + position
        return self.dropout((x.view(cache.context.shape[0], -1, self.dim) + cache.context).view_as(x))

    def score(self, x: Tensor) -> Tensor:
        """Score words by their own embeddings (Press and Wolf 2017). (B * K, L, D) -> (B * K, L, V)."""
        return F.linear(self.norm(x), self.word.weight, self.head_bias)

    def output(self, logits: Tensor, cache: ImageCache) -> DecoderOutput:
        """Join logits with the gate's losses and weights."""
        return DecoderOutput(logits, routing_loss(cache, self.balance_weight, self.z_weight), cache.expert_weights)


class MoEDecoder(ExpertDecoder):
    """Bidirectional caption decoder with image-routed experts.

    A position is embedded by its distance from the caption's start and from its end, which also tells the decoder the
    length. Args are those of ``ExpertDecoder``.
    """

    causal = False
    layer_type = DecoderLayer
    attention_type = SoftmaxSelfAttention
    positions: ClassVar = {"from_start": 0, "from_end": 0}
    from_end: nn.Embedding

    def forward(self, tokens: Tensor, memory: Tensor, pad: Tensor) -> DecoderOutput:
        """Score every caption position at once, given the image.

        Args:
            tokens: Caption ids, some of them [MASK]; the K captions of an image in consecutive rows. (B * K, L)
            memory: Image memory, as ``CrossModalFeatureAlignment.project`` gives it. (B, N, D)
            pad: True where a position is padding. (B * K, L)

        Returns:
            Logits (B * K, L, V), the weighted load-balance terms (scalar) and the expert weights (B, E).
        """
        cache = self.prepare(memory)
        return self.output(self.denoise(tokens, pad, cache), cache)

    def denoise(self, tokens: Tensor, pad: Tensor | None, cache: ImageCache) -> Tensor:
        """Score every position.

        Args:
            tokens: As in ``forward``. (B * K, L)
            pad: True where a position is padding; None where none is. (B * K, L)
            cache: From ``prepare`` on the B images.

        Returns:
            Logits. (B * K, L, V)
        """
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        behind = ahead.flip(0) if pad is None else ((~pad).sum(1, keepdim=True) - 1 - ahead).clamp(min=0)
        x = self.embed(tokens, cache, self.from_start(ahead), self.from_end(behind))
        for layer, caches in zip(self.layers, cache.layers, strict=True):
            x = layer(x, pad, caches, cache.context.shape[0])
        return self.score(x)
