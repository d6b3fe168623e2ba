"""Choose among the candidates of an image: by their words' probabilities, and by the concepts that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from fastcap.types import Guidance


def non_negative(name: str, value: float) -> float:
    """Return the value of ``refinement.NAME``.

    Raises:
        ValueError: If it is negative or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"refinement.{name} = {value} must not be negative")
    return float(value)


@dataclass(frozen=True)
class RerankWeights:
    """Weights of the choice among an image's candidates (the node ``refinement.guidance``).

    Attributes:
        rerank_weight: Weight of the concepts that a candidate is expected to share with people's captions.
        word_penalty: What each word of a candidate costs, in such concepts.

    Raises:
        ValueError: If one is negative or no number.
    """

    rerank_weight: float = 0.0
    word_penalty: float = 0.4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            non_negative(f"guidance.{name}", value)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Self:
        """Read the node."""
        return cls(**(values or {}))


@dataclass(frozen=True)
class GuidanceWeights(RerankWeights):
    """All weights of concept guidance.

    Attributes:
        word_bias: What the logit of a word gains, times the probability that people name its concept.
        bigram_bias: What a bigram gains in the lattice, times the probability that people write it of this image.
    """

    word_bias: float = 0.0
    bigram_bias: float = 0.0


def rerank(
    log_probability: Tensor, tokens: Tensor, lengths: Tensor, weights: RerankWeights, guidance: Guidance
) -> Tensor:
    """Pick the best candidate of each image.

    The mean log-probability prefers what is short and safe. People's captions reward what is named rightly and punish
    what is not, so the expected number of concepts shared with them counts (Fang et al. 2015, arXiv 1411.4952, rank
    captions by such scores too), and every word has its price.

    Args:
        log_probability: Mean log-probability of each candidate's words. (B, K)
        tokens: The candidates as they would be shown. (B, K, L)
        lengths: Content tokens of each. (B, K)
        weights: What counts beside it.
        guidance: Asked how many concepts are expected to be named rightly.

    Returns:
        Index of the best candidate. (B,)

    Raises:
        ValueError: If concepts are to be weighed and there are none.
    """
    total = log_probability
    if log_probability.shape[1] == 1 or weights.rerank_weight == 0:
        return total.argmax(1)
    if guidance.expected_matches is None:
        raise ValueError(f"refinement.guidance.rerank_weight = {weights.rerank_weight} needs the image's concepts")
    named = guidance.expected_matches(tokens, lengths).to(total.dtype)
    return (total + weights.rerank_weight * (named - weights.word_penalty * lengths)).argmax(1)
