"""How words are chosen from their logits: the likeliest, or by chance; each by itself, or neighbours together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.generation.chain import Choices, Links, best_way, drawn_way


class Draft(NamedTuple):
    """Captions on the way.

    Attributes:
        tokens: Ids, some of them [MASK]. (B, L)
        hidden: True where they are. (B, L)
        pad: True beyond each caption's end. (B, L)
    """

    tokens: Tensor
    hidden: Tensor
    pad: Tensor


# Logits (B, L, V) of a draft to word ids, their log-probabilities, and those of the choice, all (B, L); what they are
# where no word is hidden has no meaning.
Choose = Callable[[Tensor, Draft], tuple[Tensor, Tensor, Tensor]]


def likeliest(logits: Tensor, draft: Draft | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Take the word of the highest score."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return index, value, value


def at_random(logits: Tensor, draft: Draft | None = None, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw each word by its probability at a temperature, from torch's global generator."""
    choice = F.log_softmax(logits / temperature, dim=-1)
    index = torch.multinomial(choice.detach().exp().flatten(0, -2), 1).view(*logits.shape[:-1], 1)
    own = choice if temperature == 1 else F.log_softmax(logits.detach(), dim=-1)
    return index.squeeze(-1), own.gather(-1, index).squeeze(-1), choice.gather(-1, index).squeeze(-1)


class Together:
    """Choose words with their neighbours in view (``fastcap.generation.chain``).

    Args:
        links: What neighbours gain by being neighbours.
        num_choices: Words that are considered at each position.
        temperature: Draw captions at this temperature; None takes the best.
    """

    def __init__(self, links: Links, num_choices: int, temperature: float | None = None) -> None:
        self.links, self.num_choices, self.temperature = links, num_choices, temperature

    def __call__(self, logits: Tensor, draft: Draft) -> tuple[Tensor, Tensor, Tensor]:
        """Choose, as ``Choose`` says."""
        choices = Choices.of(logits, *draft, self.links, self.num_choices)
        if self.temperature is None:
            words, value = choices.taken(best_way(choices.gains))
            return words, value, value
        way, chance = drawn_way(choices.gains, self.temperature)
        return *choices.taken(way), chance
