"""The autoregressive baseline: the same decoder, word after word. Causal self-attention with a key/value cache.

Everything but the self-attention and the code of the length is the MoEDecoder's: words, image context, gate, experts.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.decoder.attention import Attention, merge_heads, split_heads
from fastcap.decoder.moe_decoder import DecoderLayer, ExpertDecoder
from fastcap.types import DecoderOutput, ExpertCache, ImageCache, Past


class CausalSelfAttention(Attention):
    """Scaled dot-product attention in which a token sees itself and the tokens before it."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__(dim, num_heads)
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


class CausalLayer(DecoderLayer):
    """Causal self-attention, then the image's experts."""

    def advance(self, x: Tensor, caches: list[ExpertCache], num_images: int, past: Past | None) -> tuple[Tensor, Past]:
        """Mix tokens and read the image; returns (B * K, L, D), and the keys and values so far."""
        change, past = self.self_attention(self.norm(x), past)
        return self.read_image(x + self.dropout(change), caches, num_images), past


class AutoregressiveDecoder(ExpertDecoder):
    """Left-to-right caption decoder with image-routed experts, for comparison with ``MoEDecoder``.

    Args are those of ``ExpertDecoder``.
    """

    causal = True
    layer_type = CausalLayer
    attention_type = CausalSelfAttention
    positions: ClassVar = {"from_start": 1}  # [BOS] stands before the caption

    def forward(self, tokens: Tensor, memory: Tensor, pad: Tensor | None = None) -> DecoderOutput:
        """Score what follows each token of whole captions.

        Args:
            tokens: [BOS] and the caption; the K captions of an image in consecutive rows. (B * K, L)
            memory: Image memory. (B, N, D)
            pad: Not read: padding comes after everything that a caption's tokens see.

        Returns:
            Logits (B * K, L, V), the weighted load-balance terms (scalar) and the expert weights (B, E).
        """
        cache = self.prepare(memory)
        return self.output(self.predict(tokens, cache)[0], cache)

    def predict(self, tokens: Tensor, cache: ImageCache, past: list[Past] | None = None) -> tuple[Tensor, list[Past]]:
        """Score what follows each token.

        Args:
            tokens: As in ``forward``, or with ``past`` the next token of each caption. (B * K, L)
            cache: From ``prepare`` on the B images.
            past: Each layer's keys and values of the tokens before. 2 x (B * K, heads, L', d)

        Returns:
            Logits (B * K, L, V), and ``past`` with these tokens added.
        """
        before = past[0][0].shape[2] if past else 0
        positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)
        x = self.embed(tokens, cache, self.from_start(positions))
        grown, num_images = list[Past](), cache.context.shape[0]
        for number, (layer, caches) in enumerate(zip(self.layers, cache.layers, strict=True)):
            x, kept = cast(CausalLayer, layer).advance(x, caches, num_images, past[number] if past else None)
            grown.append(kept)
        return self.score(x), grown
