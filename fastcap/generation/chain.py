"""Words chosen together: the best or a drawn way through a few choices at each position, neighbours in view.

A parallel draft scores every position by itself, and taking each one's likeliest word mixes captions ("a dogs are"). As
in a linear-chain conditional random field (Lafferty et al. 2001; for parallel decoders NAT-CRF, Sun et al. 2019, arXiv
1910.11555) a caption y is worth

    sum_t log p_t(y_t)  +  sum_t ( w g(y_{t-1}, y_t) + v q(y_{t-1}, y_t) )

with the decoder's p and what pairs of neighbours are worth: g, here counted (``fastcap.decoder.bigrams``) instead of
learnt, says which words go together anywhere, and q, the probability that this image's people write the two together
(``fastcap.alignment.cmfa``), which of them do here. The best caption is found by dynamic programming (Viterbi 1967)
over the k likeliest words of each position. Where what three words in a row are worth is weighed too (a chain of second
order), a way's state is its last two choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.types import Neighbours, PhraseProbability, Triples


@dataclass(frozen=True)
class Links:
    """What neighbours gain by being neighbours.

    Attributes:
        bigrams: What pairs are worth anywhere.
        bigram_weight: Weight of that.
        phrases: Which pairs are likely of the images of the captions at hand.
        phrase_weight: Weight of that.
        trigrams: What three words in a row are worth beyond their pairs, if anything.
        trigram_weight: Weight of that.
    """

    bigrams: Neighbours
    bigram_weight: float
    phrases: PhraseProbability | None = None
    phrase_weight: float = 0.0
    trigrams: Triples | None = None
    trigram_weight: float = 0.0

    def __call__(self, before: Tensor, after: Tensor) -> Tensor:
        """Look pairs up. Ids of B captions, ``bigrams.boundary`` for an end; both broadcast together, (B, ...)."""
        gain = self.bigram_weight * self.bigrams(before, after)
        if self.phrases is None:
            return gain
        return gain + self.phrase_weight * self.phrases(before, after)


@dataclass
class Choices:
    """What each position may become; a word that stands already is the only choice of its position.

    Attributes:
        words: Word ids, the boundary's from the caption's end on. (B, L + 1, k)
        log_probability: Of each word, -inf for what is no choice. (B, L + 1, k)
        gains: Of going from choice i of a position to choice j of the next, with j's log-probability. (B, L + 1, k, k);
            where triples count, from choices h and i of two positions. (B, L + 1, k, k, k)
    """

    words: Tensor
    log_probability: Tensor
    gains: Tensor

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor, hidden: Tensor, pad: Tensor, links: Links, k: int) -> Choices:
        """Collect the choices of drafts.

        Args:
            logits: Scores of every word. (B, L, V)
            tokens: What stands already. (B, L)
            hidden: True where a word is to be chosen. (B, L)
            pad: True beyond each caption's end. (B, L)
            links: What neighbours gain.
            k: Choices of a position.
        """
        value, words = logits.log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
        standing = tokens.masked_fill(pad, links.bigrams.boundary).unsqueeze(-1)
        only = torch.full_like(value[:1, :1], -torch.inf)
        only[..., 0] = 0.0
        words = torch.where(hidden.unsqueeze(-1), words, standing)
        value = torch.where(hidden.unsqueeze(-1), value, only)
        # One more position for the end, so that the longest captions have one too.
        words = F.pad(words, (0, 0, 0, 1), value=links.bigrams.boundary)
        value = torch.cat([value, only.expand(len(value), 1, -1)], dim=1)
        before = F.pad(words, (0, 0, 1, 0), value=links.bigrams.boundary)[:, :-1]
        gains = links(before.unsqueeze(-1), words.unsqueeze(-2)) + value.unsqueeze(-2)
        if links.trigrams is not None:
            first = F.pad(before, (0, 0, 1, 0), value=links.bigrams.boundary)[:, :-1]
            three = first[..., None, None], before[..., None, :, None], words[..., None, None, :]
            gains = gains.unsqueeze(2) + links.trigram_weight * links.trigrams(*three)
        return cls(words, value, gains)

    def taken(self, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Words and log-probabilities of a choice at each position. choice: (B, L); returns (B, L) twice."""
        length, at = choice.shape[1], choice.unsqueeze(-1)
        words, value = (t[:, :length].gather(-1, at).squeeze(-1) for t in (self.words, self.log_probability))
        return words, value


def best_way(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Find the way of the highest sum; any start of the first position is alike.

    Args:
        gains: As in ``Choices``. (B, L + 1, k, k) or (B, L + 1, k, k, k)

    Returns:
        A choice at each position (B, L), and the sum (B,).
    """
    ahead, pointers = torch.zeros_like(gains[:, 0, 0]), []
    for gain in reversed(gains.unbind(1)):
        ahead, pointer = (gain + ahead.unsqueeze(1)).max(-1)
        pointers.append(pointer)
    choices = torch.stack(pointers[:0:-1]).flatten(2)  # of each position but the end, from each state (L, B, states)
    states = torch.arange(choices.shape[-1], device=gains.device)
    state, way = choices.new_zeros(len(gains), 1), []
    for leads_to in _follow(states, choices, gains).unbind():
        state = leads_to.gather(1, state)
        way.append(state)
    return torch.cat(way, dim=1) % gains.shape[-1], ahead.flatten(1)[:, 0]


def drawn_way(gains: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw ways, each with a probability that goes with the exponential of its sum, from torch's global generator.

    Args:
        gains: As in ``best_way``.
        temperature: Divides the sums.

    Returns:
        Choices, and the log-probability of each given those before; a row's sum is its way's. (B, L) twice
    """
    gains = gains / temperature
    ahead, conditional = torch.zeros_like(gains[:, 0, 0]), []
    for gain in reversed(gains.unbind(1)):
        total = gain + ahead.unsqueeze(1)
        ahead = total.logsumexp(-1)
        conditional.append((total - ahead.unsqueeze(-1)).flatten(1, -2))
    state, way, chance = torch.zeros(len(gains), 1, dtype=torch.long, device=gains.device), [], []
    for table in reversed(conditional[1:]):
        row = table.gather(1, state.unsqueeze(-1).expand(-1, 1, table.shape[-1])).squeeze(1)
        choice = torch.multinomial(row.detach().exp(), 1)
        way.append(choice)
        chance.append(row.gather(1, choice))
        state = _follow(state, choice, gains)
    return torch.cat(way, dim=1), torch.cat(chance, dim=1)


def _follow(state: Tensor, choice: Tensor, gains: Tensor) -> Tensor:
    """Number the state that a choice leads to: the last choice, or the last two as one number. Both broadcast."""
    return choice if gains.dim() == 4 else state % gains.shape[-1] * gains.shape[-1] + choice
