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


class Chosen(NamedTuple):
    """Words chosen; what is said of them where no word was hidden has no meaning.

    Attributes:
        words: Ids. (B, L)
        certainty: Their log-probabilities. (B, L)
        chance: The log-probability of each choice, which drawing makes another. (B, L)
        together: What whole captions are worth beyond their words; None where that is nothing, or words are drawn. (B,)
    """

    words: Tensor
    certainty: Tensor
    chance: Tensor
    together: Tensor | None = None


Choose = Callable[[Tensor, Draft], Chosen]  # from the logits (B, L, V) of a draft


def likeliest(logits: Tensor, draft: Draft | None = None) -> Chosen:
    """Take the word of the highest score."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return Chosen(index, value, value)


def at_random(logits: Tensor, draft: Draft | None = None, temperature: float = 1.0) -> Chosen:
    """Draw each word by its probability at a temperature, from torch's global generator."""
    choice = F.log_softmax(logits / temperature, dim=-1)
    index = torch.multinomial(choice.detach().exp().flatten(0, -2), 1).view(*logits.shape[:-1], 1)
    own = choice if temperature == 1 else F.log_softmax(logits.detach(), dim=-1)
    return Chosen(index.squeeze(-1), own.gather(-1, index).squeeze(-1), choice.gather(-1, index).squeeze(-1))


class Together:
    """Choose words with their neighbours in view (``fastcap.generation.chain``).

    Args:
        links: What neighbours gain by being neighbours.
        num_choices: Words that are considered at each position.
        temperature: Draw captions at this temperature; None takes the best.
    """

    def __init__(self, links: Links, num_choices: int, temperature: float | None = None) -> None:
        self.links, self.num_choices, self.temperature = links, num_choices, temperature

    def __call__(self, logits: Tensor, draft: Draft) -> Chosen:
        """Choose, as ``Choose`` says."""
        choices = Choices.of(logits, *draft, self.links, self.num_choices)
        if self.temperature is None:
            way, total = best_way(choices.gains)
            words, value = choices.taken(way)
            return Chosen(words, value, value, total - value.sum(1))
        way, chance = drawn_way(choices.gains, self.temperature)
        return Chosen(*choices.taken(way), chance)
