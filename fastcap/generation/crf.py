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

UNKNOWN_PAIR = 8.0  # inverse document frequency of a pair of words that is no phrase: that of one image in 3,000
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
        rerank_weight: Weight of a candidate's expected CIDEr-D.
        repeat_penalty: What each concept of content that is named again costs, in CIDEr-D.

    Raises:
        ValueError: If one is negative or no number.
    """

    rerank_weight: float = 0.0
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


Choose = Callable[[Tensor, Draft, int], Choice]  # from the logits (B, L, V) of a draft, so many ways a caption


def argmax(logits: Tensor, draft: Draft | None = None, num_paths: int = 1) -> Choice:
    """Take the likeliest word of each position."""
    value, index = F.log_softmax(logits, dim=-1).max(-1)
    return Choice(index, value, value)


def sample(logits: Tensor, draft: Draft | None = None, num_paths: int = 1, temperature: float = 1.0) -> Choice:
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
            The gain of choice j at a position after choices h and i at the two before. (B, L, k, k, k)
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
                return gains.unsqueeze(2) + weights.trigram * ngrams.trigram(context, words[:, :, None, None])
        return gains.unsqueeze(2).expand(-1, -1, words.shape[-1], -1, -1)


def lattice(logits: Tensor, draft: Draft, transitions: Transitions, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Collect the k likeliest words of each position; a word that stands already is the only choice of its position.

    Args:
        logits: Scores of words. (B, L, V)
        draft: The captions so far.
        transitions: Scores of neighbouring words.
        k: Choices.

    Returns:
        Word ids, the boundary from the caption's end on (B, L + 1, k); their log-probabilities, ``IMPOSSIBLE`` for what
        is no choice (B, L + 1, k); and the gains from ``transitions`` (B, L + 1, k, k, k).
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

    def __call__(self, logits: Tensor, draft: Draft, num_paths: int = 1) -> Choice:
        """Choose, as ``Choose`` says; ``num_paths`` ways follow each other, the best first."""
        words, value, gains = lattice(logits, draft, self.transitions, self.lattice_width)
        length = logits.shape[1]
        if self.temperature is not None:
            path, decision = sample_path(gains, self.temperature)
            words, value = (t[:, :-1].gather(-1, path[:, :length].unsqueeze(-1)).squeeze(-1) for t in (words, value))
            return Choice(words, value, decision[:, :length])
        if self.longest and torch.compiler.is_exporting():  # beyond the end the boundary is the only choice
            more = 0, 0, 0, 0, 0, 0, 0, self.longest + 1 - gains.shape[1]
            gains = torch.cat([F.pad(gains[..., :1], more), F.pad(gains[..., 1:], more, value=IMPOSSIBLE)], dim=-1)
        path, score = best_paths(gains, num_paths)
        words, value = (
            t[:, None, :-1].expand(-1, num_paths, -1, -1).gather(-1, path[..., :length, None]).flatten(0, 1).squeeze(-1)
            for t in (words, value)
        )
        return Choice(words, value, value, score.flatten() - value.sum(1))


def best_paths(gains: Tensor, num_paths: int) -> tuple[Tensor, Tensor]:
    """Find the paths of the highest sums (list Viterbi, Seshadri and Sundberg 1994).

    Args:
        gains: As from ``lattice``; all starts of the first position are alike. (B, L, k, k, k)
        num_paths: Paths n. Where there are fewer, the rest have an impossible sum.

    Returns:
        A choice at each position (B, n, L), and the sums, falling (B, n).
    """
    batch, _, k = gains.shape[:3]
    # From each state (the last two choices) backwards, the sums of its n best ways to the end.
    rank, taken = torch.arange(num_paths, device=gains.device), []
    ahead = torch.where(rank == 0, 0.0, IMPOSSIBLE).expand(batch, k, k, -1)
    for gain in reversed(gains.unsqueeze(-1).unbind(1)):
        ahead, way = (gain + ahead.unsqueeze(1)).flatten(3).topk(num_paths, dim=-1)
        taken.append(way)
    # A way is a choice j and a rank r there; it leads from (h, i) to (i, j), rank r.
    ways = torch.stack(taken[::-1], dim=1)
    first = torch.arange(k, device=gains.device).view(k, 1) * (k * num_paths)
    at, path = rank.expand(batch, -1), []
    for leads_to in (ways + first).flatten(2).unbind(1):
        at = leads_to.gather(1, at)
        path.append(at)
    return torch.stack(path, dim=-1) // num_paths % k, ahead[:, 0, 0]


def sample_path(gains: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sample paths by the exponential of their sums: backward filtering, forward sampling.

    Args:
        gains: As in ``best_paths``.
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
        state = state % gains.shape[-1] * gains.shape[-1] + choice
    return torch.cat(path, dim=1), torch.cat(decision, dim=1)


def bigram_probability(guidance: Guidance, before: Tensor, after: Tensor) -> Tensor:
    """Look up how probably people write neighbouring words of the image; zero where two words are no phrase.

    Args:
        guidance: What the B images say.
        before: Word ids of K captions an image; V, a caption's end, is part of no phrase. (B * K, ...)
        after: Of the words that follow; both broadcast together. (B * K, ...)
    """
    place = _phrase(guidance, before, after)
    return guidance.probability.gather(1, place.view(guidance.probability.shape[0], -1)).view_as(place)


def expected_cider(guidance: Guidance, tokens: Tensor, lengths: Tensor, repeat_penalty: float = 0.0) -> Tensor:
    """Expect the CIDEr-D of each candidate against captions that people would write of the image.

    CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) of words and pairs of words, in which concepts and phrases stand as
    probably as the image calls for them. What is no phrase is a pair that no caption has.

    Args:
        guidance: What the images say.
        tokens: Candidates. (B, K, L)
        lengths: Content tokens of each. (B, K)
        repeat_penalty: Price of a concept of content that is named again.

    Returns:
        In [0, 10], less the price of repeats. (B, K)
    """
    probability, num_words = guidance.probability, guidance.probability.shape[1] - guidance.phrases.shape[0]
    inside = torch.arange(tokens.shape[2], device=tokens.device) < lengths.unsqueeze(-1)
    phrases = _phrase(guidance, tokens[..., :-1], tokens[..., 1:]) * inside[..., 1:]
    places = torch.cat([take(guidance.words, tokens) * inside, phrases], dim=2)
    marks = probability.new_zeros(*tokens.shape[:2], probability.shape[1]).scatter_(2, places, 1.0)
    unknown = (lengths - 1 - (phrases > 0).sum(2)).clamp(min=0) * UNKNOWN_PAIR**2
    squares = guidance.idf.square()
    own, theirs = marks * squares, (probability * squares).unsqueeze(1)
    shared = marks * theirs
    cosine = torch.zeros_like(own[..., 0])
    for kind, more in ((slice(num_words), 0), (slice(num_words, None), unknown)):
        norms = (own[..., kind].sum(2) + more) * theirs[..., kind].sum(2)
        cosine = cosine + shared[..., kind].sum(2) / (norms + 1e-6).sqrt()
    repeats = take(guidance.content, places).sum(2) - (marks * guidance.content).sum(2)
    return 5.0 * cosine - repeat_penalty * repeats


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

    The mean log-probability prefers what is short and safe. What people reward is what is named rightly and little said
    beside it, so the expected CIDEr-D counts (Fang et al. 2015, arXiv 1411.4952, rank captions by concepts too).

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
    expected = expected_cider(guidance, tokens, lengths, weights.repeat_penalty).to(log_probability.dtype)
    return (log_probability + weights.rerank_weight * expected).argmax(1)
