"""How a word is chosen from its logits: the likeliest, or by chance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits (..., V) to word ids, their log-probabilities, and those of the choice, all (...).
Choose = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the word of the highest score."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return index, value, value


def at_random(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each word by its probability at a temperature, from torch's global generator."""
    choice = F.log_softmax(logits / temperature, dim=-1)
    index = torch.multinomial(choice.detach().exp().flatten(0, -2), 1).view(*logits.shape[:-1], 1)
    own = choice if temperature == 1 else F.log_softmax(logits.detach(), dim=-1)
    return index.squeeze(-1), own.gather(-1, index).squeeze(-1), choice.gather(-1, index).squeeze(-1)
