"""From the width to the vocabulary, by the matrix that also embeds the words."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class VocabularyHead(nn.Module):
    """Score words by their own embeddings (Press and Wolf 2017, arXiv 1608.05859). It owns no weights.

    Attributes:
        packed: What multiplies in inference, its weights laid out for the machine; None takes those given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed: nn.Module | None = None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Score the vocabulary. x: (..., D), weight: (V, D), bias: (V,); returns (..., V)."""
        return F.linear(x, weight, bias) if self.packed is None else self.packed(x)
