"""The parallel decoder: scores every position of a masked caption at once, given the image.

Training calls ``forward``; refinement calls ``prepare`` once an image and ``denoise`` at each step. ``forward`` is
made of those two, so what is trained is what is shipped.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastcap.decoder.attention import SoftmaxSelfAttention
from fastcap.decoder.base import DecoderLayer, ExpertDecoder
from fastcap.types import DecoderOutput, ImageCache


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
