"""How a caption is chosen: each word by itself, or all as the best path through a lattice (a linear-chain CRF).

A parallel draft scores every position by itself, and taking each one's likeliest word mixes captions ("a dogs are"). As
in a linear-chain conditional random field (Lafferty et al. 2001; for parallel decoders NAT-CRF, Sun et al. 2019, arXiv
1910.11555) a caption y is worth

    sum_t log p_t(y_t)  +  sum_t ( w g(y_{t-1}, y_t) + v q(y_{t-1}, y_t) + u h(y_{t-2}, y_{t-1}, y_t) )

with the decoder's p, the scores g and h of bigrams and trigrams (``fastcap.generation.ngrams``) and the probability q
that people write two neighbouring words of this image (``types.Guidance``). The best caption over the k
likeliest words of each position is found by dynamic programming (Viterbi 1967). With trigrams the chain is of second
order: a state is the last two choices. Of an image's finished candidates ``rerank`` takes the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.generation.ngrams import NGrams, find, take
from fastcap.types import Guidance

IMPOSSIBLE = -1e9  # log-probability of what must not be chosen: finite, so that no difference of two is undefined


@dataclass(frozen=True)
class NGramWeights:
    """Weights of the language model's scores in the lattice (``refinement.ngram_weights``); zero leaves a score out.

    Raises:
        ValueError: If one is negative or no number.
    """

    bigram: float = 0.0
    trigram: float = 0.0

    def __post_init__(self) -> None:
        _check_weights("ngram_weights", vars(self))


@dataclass(frozen=True)
class RerankWeights:
    """Weights of the choice among an image's candidates (``refinement.guidance``).

    Attributes:
        rerank_weight: Weight of the concepts that a candidate is expected to share with people's captions.
        word_penalty: What each word of a candidate costs, in such concepts.
        repeat_penalty: What each concept of content that is named again costs, likewise.

    Raises:
        ValueError: If one is negative or no number.
    """

    rerank_weight: float = 0.0
    word_penalty: float = 0.4
    repeat_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check_weights("guidance", vars(self))

    @property
    def weighed(self) -> dict[str, float]:
        """The weights by which concepts or phrases of the image count."""
        return {name: weight for name, weight in vars(self).items() if weight > 0 and not name.endswith("penalty")}

    def check(self, guidance: Guidance | None) -> None:
        """Raise a ``ValueError`` where the image is to guide decoding and says nothing."""
        if guidance is None and (weighed := self.weighed):
            name, weight = next(iter(weighed.items()))
            raise ValueError(f"refinement.guidance.{name} = {weight} needs the image's concepts")


@dataclass(frozen=True)
class GuidanceWeights(RerankWeights):
    """All weights of concept guidance.

    Attributes:
        word_bias: What the logit of a word gains, times the probability that people name its concept.
        bigram_bias: What a bigram gains in the lattice, times the probability that people write it of this image.
    """

    word_bias: float = 0.0
    bigram_bias: float = 0.0


def _check_weights(node: str, weights: Mapping[str, float]) -> None:
    for name, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"refinement.{node}.{name} = {value} must not be negative")


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


class Choice(NamedTuple):
    """The words that were chosen; what is said of positions where no word was hidden has no meaning.

    Attributes:
        words: Ids. (B, L)
        certainty: Their log-probabilities. (B, L)
        decision: Log-probability of each choice, which sampling makes another one. (B, L)
        transitions: Score of each caption beyond its words; None where there is none, or words are sampled. (B,)
    """

    words: Tensor
    certainty: Tensor
    decision: Tensor
    transitions: Tensor | None = None


Choose = Callable[[Tensor, Draft], Choice]  # from the logits (B, L, V) of a draft


def argmax(logits: Tensor, draft: Draft | None = None) -> Choice:
    """Take the likeliest word of each position."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return Choice(index, value, value)


def sample(logits: Tensor, draft: Draft | None = None, temperature: float = 1.0) -> Choice:
    """Sample each word by itself at a temperature, from torch's global generator."""
    tempered = F.log_softmax(logits / temperature, dim=-1)
    index = torch.multinomial(tempered.detach().exp().flatten(0, -2), 1).view(*logits.shape[:-1], 1)
    own = tempered if temperature == 1 else F.log_softmax(logits.detach(), dim=-1)
    return Choice(index.squeeze(-1), own.gather(-1, index).squeeze(-1), tempered.gather(-1, index).squeeze(-1))


@dataclass(frozen=True)
class Transitions:
    """Scores of neighbouring words.

    Attributes:
        ngrams: The language model.
        weights: Its weights.
        guidance: What the images say, if anything.
        bigram_bias: Weight of the probability that people write two words together of the image.
    """

    ngrams: NGrams
    weights: NGramWeights
    guidance: Guidance | None = None
    bigram_bias: float = 0.0

    def __call__(self, words: Tensor, log_probability: Tensor) -> Tensor:
        """Score every step through a lattice.

        Args:
            words: The choices of each position; the boundary beyond a caption's end. (B, L, k)
            log_probability: Of each choice. (B, L, k)

        Returns:
            The gain of choice j at a position after choice i at the one before (B, L, k, k); with trigrams, after
            choices h and i at the two before (B, L, k, k, k).
        """
        ngrams, weights = self.ngrams, self.weights
        gains = log_probability.unsqueeze(-2).expand(-1, -1, words.shape[-1], -1)
        before = F.pad(words, (0, 0, 1, 0), value=ngrams.boundary)[:, :-1].unsqueeze(-1)
        after = words.unsqueeze(-2)
        if self.guidance is not None and self.bigram_bias > 0:
            gains = gains + self.bigram_bias * bigram_probability(self.guidance, before, after)
        if weights.bigram > 0 or weights.trigram > 0:
            found = ngrams.find(before, after)
            gains = gains + weights.bigram * ngrams.bigram(before, found)
            if weights.trigram > 0:
                # The bigram in front of a word was found at the position before; there is none in front of the first.
                context = F.pad(found, (0, 0, 0, 0, 1, 0), value=-1)[:, :-1].unsqueeze(-1)
                gains = gains.unsqueeze(2) + weights.trigram * ngrams.trigram(context, words[:, :, None, None])
        return gains


def lattice(logits: Tensor, draft: Draft, transitions: Transitions, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Collect the k likeliest words of each position; a word that stands already is the only choice of its position.

    Args:
        logits: Scores of words. (B, L, V)
        draft: The captions so far.
        transitions: Scores of neighbouring words.
        k: Choices.

    Returns:
        Word ids, the boundary from the caption's end on (B, L + 1, k); their log-probabilities, ``IMPOSSIBLE`` for what
        is no choice (B, L + 1, k); and the gains from ``transitions``, (B, L + 1, k, k) or (B, L + 1, k, k, k).
    """
    boundary = transitions.ngrams.boundary
    value, words = logits.log_softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
    standing = draft.tokens.masked_fill(draft.pad, boundary).unsqueeze(-1)
    only = torch.full_like(value[:1, :1], IMPOSSIBLE)
    only[..., 0] = 0.0
    hidden = draft.hidden.unsqueeze(-1)
    words, value = torch.where(hidden, words, standing), torch.where(hidden, value, only)
    # One more position for the end, so that the longest captions have one too.
    words = F.pad(words, (0, 0, 0, 1), value=boundary)
    value = torch.cat([value, only.expand(value.shape[0], 1, -1)], dim=1)
    return words, value, transitions(words, value)


class CRF:
    """Choose the words of a draft together.

    Args:
        transitions: Scores of neighbouring words.
        lattice_width: Words that are considered at each position.
        temperature: Sample captions at this temperature; None takes the best.
        longest: The longest caption that there can be: an export unrolls the way through the lattice so far.
    """

    def __init__(
        self, transitions: Transitions, lattice_width: int, temperature: float | None = None, longest: int | None = None
    ) -> None:
        self.transitions, self.lattice_width, self.temperature = transitions, lattice_width, temperature
        self.longest = longest

    def __call__(self, logits: Tensor, draft: Draft) -> Choice:
        """Choose, as ``Choose`` says."""
        *choices, gains = lattice(logits, draft, self.transitions, self.lattice_width)
        if self.longest and torch.compiler.is_exporting():  # beyond the end there is nothing to gain
            gains = F.pad(gains, (*[0] * (2 * gains.dim() - 3), self.longest + 1 - gains.shape[1]))
        path, score = viterbi(gains) if self.temperature is None else sample_path(gains, self.temperature)
        path = path[:, : logits.shape[1]]
        words, value = (t[:, :-1].gather(-1, path.unsqueeze(-1)).squeeze(-1) for t in choices)
        if self.temperature is None:
            return Choice(words, value, value, score - value.sum(1))
        return Choice(words, value, score)


def viterbi(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Find the path of the highest sum.

    Args:
        gains: As in ``lattice``; all starts of the first position are alike. (B, L + 1, k, k) or (B, L + 1, k, k, k)

    Returns:
        A choice at each position (B, L), and the sum (B,).
    """
    # Captions last, so that a sum broadcasts as it is: an export has two nodes a position (`movedim` would add one).
    steps, sums = gains.flatten(1).t().unflatten(0, gains.shape[1:]).split(1), list[Tensor]()
    ahead = torch.zeros_like(steps[0][:, 0])
    for gain in reversed(steps):
        sums.append(gain + ahead)
        ahead = sums[-1].amax(-2)
    choices = torch.cat(sums[:0:-1]).argmax(-2).flatten(1, -2)  # of each position but the end, from each state
    states = torch.arange(choices.shape[1], device=gains.device).unsqueeze(1)
    state, path = torch.zeros_like(choices[:1, :1]), []
    for leads_to in _next_state(states, choices, gains).split(1):
        state = leads_to.gather(1, state)
        path.append(state)
    return torch.cat(path).squeeze(1).t() % gains.shape[-1], ahead.flatten(0, -2)[0]


def sample_path(gains: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sample paths by the exponential of their sums: backward filtering, forward sampling.

    Args:
        gains: As in ``viterbi``.
        temperature: Divides the sums.

    Returns:
        Choices, and the log-probability of each given those before; a row's sum is its path's. (B, L) twice
    """
    gains = gains / temperature
    ahead, conditional = torch.zeros_like(gains[:, 0, 0]), []
    for gain in reversed(gains.unbind(1)):
        total = gain + ahead.unsqueeze(1)
        ahead = total.logsumexp(-1)
        conditional.append((total - ahead.unsqueeze(-1)).flatten(1, -2))
    state, path, decision = torch.zeros(len(gains), 1, dtype=torch.long, device=gains.device), [], []
    for table in reversed(conditional[1:]):
        row = table.gather(1, state.unsqueeze(-1).expand(-1, 1, table.shape[-1])).squeeze(1)
        choice = torch.multinomial(row.detach().exp(), 1)
        path.append(choice)
        decision.append(row.gather(1, choice))
        state = _next_state(state, choice, gains)
    return torch.cat(path, dim=1), torch.cat(decision, dim=1)


def _next_state(state: Tensor, choice: Tensor, gains: Tensor) -> Tensor:
    """Number the state that a choice leads to: the last choice, or the last two as one number. Both broadcast."""
    return choice if gains.dim() == 4 else state % gains.shape[-1] * gains.shape[-1] + choice


def bigram_probability(guidance: Guidance, before: Tensor, after: Tensor) -> Tensor:
    """Look up how probably people write neighbouring words of the image; zero where two words are no phrase.

    Args:
        guidance: What the B images say.
        before: Word ids of K captions an image; V, a caption's end, is part of no phrase. (B * K, ...)
        after: Of the words that follow; both broadcast together. (B * K, ...)
    """
    place = _phrase(guidance, before, after)
    return guidance.probability.gather(1, place.view(guidance.probability.shape[0], -1)).view_as(place)


def expected_matches(guidance: Guidance, tokens: Tensor, lengths: Tensor, repeat_penalty: float = 0.0) -> Tensor:
    """Add up the probabilities of each caption's concepts and phrases, each once, less the price of each repeat.

    Args:
        guidance: What the images say.
        tokens: Candidates. (B, K, L)
        lengths: Content tokens of each. (B, K)
        repeat_penalty: Price of a concept of content that is named again.

    Returns:
        Expected matches. (B, K)
    """
    inside = torch.arange(tokens.shape[2], device=tokens.device) < lengths.unsqueeze(-1)
    phrases = _phrase(guidance, tokens[..., :-1], tokens[..., 1:]) * inside[..., 1:]
    places, probability = torch.cat([take(guidance.words, tokens) * inside, phrases], dim=2), guidance.probability
    marks = probability.new_zeros(*tokens.shape[:2], probability.shape[1]).scatter_(2, places, 1.0)
    matches = (marks * probability.unsqueeze(1)).sum(2)
    if repeat_penalty == 0:
        return matches
    repeats = take(guidance.content, places).sum(2) - (marks * guidance.content).sum(2)
    return matches - repeat_penalty * repeats


def _phrase(guidance: Guidance, before: Tensor, after: Tensor) -> Tensor:
    """Find phrases in ``Guidance.probability``; zero for pairs that are none. Ids, which broadcast together."""
    vocab_size = guidance.words.shape[0]
    wanted = (before * vocab_size + after).where(after < vocab_size, -1)
    if not guidance.phrases.numel():
        return torch.zeros_like(wanted)
    place = find(guidance.phrases, wanted)
    return (place + guidance.probability.shape[1] - guidance.phrases.shape[0]) * (place >= 0)


def rerank(
    log_probability: Tensor, tokens: Tensor, lengths: Tensor, weights: RerankWeights, guidance: Guidance | None
) -> Tensor:
    """Pick the best candidate of each image.

    The mean log-probability prefers what is short and safe. People's captions reward what is named rightly and punish
    what is not, so the expected number of concepts shared with them counts (Fang et al. 2015, arXiv 1411.4952, rank
    captions by such scores too), and every word has its price, one that says a thing again another.

    Args:
        log_probability: Mean log-probability of each candidate's words. (B, K)
        tokens: The candidates as they would be shown. (B, K, L)
        lengths: Content tokens of each. (B, K)
        weights: What counts beside it.
        guidance: What the images say.

    Returns:
        Index of the best candidate. (B,)
    """
    if guidance is None or log_probability.shape[1] == 1 or weights.rerank_weight == 0:
        return log_probability.argmax(1)
    named = expected_matches(guidance, tokens, lengths, weights.repeat_penalty).to(log_probability.dtype)
    return (log_probability + weights.rerank_weight * (named - weights.word_penalty * lengths)).argmax(1)
