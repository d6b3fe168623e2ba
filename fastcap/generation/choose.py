"""How a word is chosen from its logits: the likeliest, or by chance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits (..., V) to word ids and their log-probabilities, both (...).
Choose = Callable[[Tensor], tuple[Tensor, Tensor]]


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Take the word of the highest score."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return index, value


def at_random(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw each word by its probability at a temperature, from torch's global generator."""
    log_probability = F.log_softmax(logits / temperature, dim=-1)
    flat = log_probability.detach().exp().flatten(0, -2)
    index = torch.multinomial(flat, 1).view(logits.shape[:-1])
    return index, log_probability.gather(-1, index.unsqueeze(-1)).squeeze(-1)
