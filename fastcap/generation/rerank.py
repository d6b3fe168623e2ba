"""Choose among the candidates of an image: by their words' probabilities, and by the concepts that they name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastcap.types import Judges


def check_weight(name: str, weight: float) -> float:
    """Return the weight ``refinement.NAME``.

    Raises:
        ValueError: If it is negative or no number.
    """
    if not weight >= 0:
        raise ValueError(f"refinement.{name} = {weight} must not be negative")
    return float(weight)


@dataclass(frozen=True)
class Weights:
    """What counts beside the words' probabilities where one of several candidates is chosen.

    Attributes:
        naming: Weight of the concepts that a candidate is expected to name rightly, less what its words cost.
        cost: What each word of a candidate costs, in rightly named concepts.

    Raises:
        ValueError: If one is negative or no number.
    """

    naming: float = 0.0
    cost: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("naming_weight", self.naming), ("naming_cost", self.cost)):
            check_weight(name, value)


def rank(
    log_probability: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    weights: Weights,
    judges: Judges,
) -> Tensor:
    """Pick the best candidate of each image.

    The mean log-probability prefers what is short and safe. People's captions reward what is named rightly and
    punish what is not, so the expected number of rightly named concepts counts (visual concepts, Fang et al. 2015,
    arXiv 1411.4952, whose captions are ranked by such scores too), and every word has its price.

    Args:
        log_probability: Mean log-probability of each candidate's words. (B, K)
        tokens: The candidates as they would be shown. (B, K, L)
        lengths: Content tokens of each. (B, K)
        weights: What counts beside it; zeros leave it out.
        judges: Asked how many concepts are expected to be named rightly.

    Returns:
        Index of the best candidate. (B,)

    Raises:
        ValueError: If naming is to be weighed and there is none.
    """
    total = log_probability
    if log_probability.shape[1] == 1:
        return total.argmax(1)
    if weights.naming > 0:
        if judges.naming is None:
            raise ValueError(f"refinement.naming_weight = {weights.naming} needs the image's concepts")
        named = judges.naming(tokens, lengths).to(total.dtype)
        total = total + weights.naming * (named - weights.cost * lengths)
    return total.where(log_probability.isfinite(), log_probability).argmax(1)  # a beam without words has no place
