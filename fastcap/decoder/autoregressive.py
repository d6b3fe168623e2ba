"""The honest rival: the same decoder, word after word. Causal self-attention with a key/value cache.

Everything but the self-attention and the code of the length is the MoEDecoder's: words, image context, gate, experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.decoder.attention import JoinedMemory, merge_heads, split_heads
from fastcap.decoder.moe import (
    Expert,
    ExpertCache,
    ExpertMixture,
    GatingNetwork,
    join_memories,
    prepare_layers,
)
from fastcap.decoder.moe_decoder import DecoderCache
from fastcap.decoder.vocabulary import VocabularyHead
from fastcap.types import DecoderOutput, Past


class CausalSelfAttention(nn.Module):
    """Scaled dot-product attention in which a token sees itself and the tokens before it.

    Args:
        dim: Width D.
        num_heads: Heads; must divide ``dim``.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads = {num_heads} must divide the decoder's dim = {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Mix tokens.

        Args:
            x: A whole caption, or with ``past`` its next token. (B, L, D)
            past: Keys and values of the tokens before. 2 x (B, heads, L', d)

        Returns:
            (B, L, D), and keys and values with those of ``x`` added.
        """
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        return self.out(merge_heads(y)), (k, v)


class CausalLayer(nn.Module):
    """Causal self-attention, then the image's experts."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        self_attention: Callable[[int], CausalSelfAttention],
        expert: Callable[[int], Expert],
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.self_attention = self_attention(dim)
        self.dropout = nn.Dropout(dropout)
        self.mixture = ExpertMixture(num_experts, dim, expert)

    def forward(self, x: Tensor, caches: list[ExpertCache], num_images: int, past: Past | None) -> tuple[Tensor, Past]:
        """(B * K, L, D) -> (B * K, L, D), and the keys and values so far."""
        change, past = self.self_attention(self.norm(x), past)
        x = x + self.dropout(change)
        by_image = x.view(num_images, -1, x.shape[-1])
        return x + self.mixture(by_image, caches).view_as(x), past


class AutoregressiveDecoder(nn.Module):
    """Left-to-right caption decoder with image-routed experts, for comparison with ``MoEDecoder``.

    Args:
        vocab_size: Words V, special tokens included.
        max_length: Longest caption, in tokens.
        pad_id: Id of [PAD].
        dim: Width D.
        num_layers: Layers.
        num_experts: Experts E of each layer.
        top_k: Experts an image.
        self_attention: Makes a causal self-attention from the width.
        expert: Makes one expert from the width.
        dropout: Dropout on embeddings and self-attention.
        balance_weight: Weight of the load-balance term in ``aux_loss``.
        z_weight: Weight of the gate's z-loss in ``aux_loss``.
    """

    causal = True

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        pad_id: int,
        dim: int = 256,
        num_layers: int = 3,
        num_experts: int = 4,
        top_k: int = 1,
        self_attention: Callable[[int], CausalSelfAttention] = CausalSelfAttention,
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
        self.from_start = nn.Embedding(max_length + 1, dim)  # [BOS] stands before the caption
        self.context = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.gate = GatingNetwork(dim, num_experts, top_k)
        self.layers = nn.ModuleList(
            CausalLayer(dim, num_experts, self_attention, expert, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = VocabularyHead()
        self.joined: JoinedMemory | None = None
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.word.weight, std=dim**-0.5)
        nn.init.normal_(self.from_start.weight, std=0.7)

    def prepare(self, memory: Tensor) -> DecoderCache:
        """Route each image and compute its experts' image-only values. memory: (B, N, D)."""
        routing, context = self.gate(memory), self.context(memory.mean(1, keepdim=True))
        layers = prepare_layers(self.layers, memory, routing.weights, self.joined)
        return DecoderCache(routing, context, layers)

    def join(self) -> None:
        """Prepare all experts' image-only values at once from now on, where possible; for inference."""
        self.joined = join_memories(self.layers, self.gate.top_k)

    def predict(self, tokens: Tensor, cache: DecoderCache, past: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
        """Score what follows each token.

        Args:
            tokens: [BOS] and a caption, or with ``past`` its next token; the K captions of an image in consecutive
                rows. (B * K, L)
            cache: From ``prepare`` on the B images.
            past: Each layer's keys and values of the tokens before. 2 x (B * K, heads, L', d)

        Returns:
            Logits (B * K, L, V), and ``past`` with these tokens added.
        """
        before = past[0][0].shape[2] if past else 0
        positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)
        x = self.dim**0.5 * self.word(tokens) + self.from_start(positions)
        num_images = cache.context.shape[0]
        x = self.dropout((x.view(num_images, -1, self.dim) + cache.context).view_as(x))
        grown: list[Past] = []
        for number, (layer, caches) in enumerate(zip(self.layers, cache.layers, strict=True)):
            x, kept = layer(x, caches, num_images, past[number] if past else None)
            grown.append(kept)
        return self.head(self.norm(x), self.word.weight, self.head_bias), grown

    def forward(self, tokens: Tensor, features: Tensor) -> DecoderOutput:
        """Score what follows each token of whole captions.

        Args:
            tokens: [BOS] and the caption. (B * K, L)
            features: Image memory. (B, N, D)

        Returns:
            Logits (B * K, L, V), the weighted load-balance terms (scalar) and the expert weights (B, E).
        """
        cache = self.prepare(features)
        return self.output(self.predict(tokens, cache)[0], cache)

    def output(self, logits: Tensor, cache: DecoderCache) -> DecoderOutput:
        """Join logits with what the gate has to say of the batch."""
        routing = cache.routing
        aux_loss = routing.loss(self.balance_weight, self.z_weight)
        return DecoderOutput(logits, aux_loss, routing.weights)
