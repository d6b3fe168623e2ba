"""Dynamic Length-Aware Generation: how long the caption of an image should be."""

from __future__ import annotations

from torch import Tensor, nn


class DynamicLengthPredictor(nn.Module):
    """Predict the distribution of caption lengths from the image (as Mask-Predict does, arXiv 1904.09324).

    Patches are pooled by one learned query before a two-layer head; refinement then tries the likeliest lengths.

    Args:
        dim: Width D of the image memory.
        max_length: Longest caption, in tokens.
        hidden_dim: Width of the hidden layer.
        dropout: Dropout before the last layer.
    """

    def __init__(self, dim: int, max_length: int, hidden_dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.max_length = max_length
        self.pool = nn.Linear(dim, 1)
        self.head = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, max_length),
        )

    def forward(self, memory: Tensor) -> Tensor:
        """Score the lengths 1..max_length. memory: (B, N, D); returns logits (B, max_length)."""
        weight = self.pool(memory).softmax(dim=1)
        return self.head((weight * memory).sum(1))


def top_lengths(logits: Tensor, count: int) -> Tensor:
    """The ``count`` likeliest lengths, likeliest first. (B, max_length) -> (B, count), each in 1..max_length."""
    return logits.topk(min(count, logits.shape[-1]), dim=-1).indices + 1
