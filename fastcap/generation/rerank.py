"""Choose among the candidates of an image: by their words' probabilities, and by how well they fit the image."""

from __future__ import annotations

from torch import Tensor

from fastcap.types import Similarity


def check_weight(name: str, weight: float) -> float:
    """Return the weight ``refinement.NAME``.

    Raises:
        ValueError: If it is negative or no number.
    """
    if not weight >= 0:
        raise ValueError(f"refinement.{name} = {weight} must not be negative")
    return float(weight)


def rank(
    log_probability: Tensor, tokens: Tensor, lengths: Tensor, weight: float, similarity: Similarity | None
) -> Tensor:
    """Pick the best candidate of each image.

    A language model prefers what is often said; the alignment, trained to tell captions of this image from those of
    others, what is true of this one. The sum is noisy-channel reranking's (Yee et al. 2019, arXiv 1908.05731), with a
    contrastive model (CLIP, arXiv 2103.00020) as the channel.

    Args:
        log_probability: Mean log-probability of each candidate's words. (B, K)
        tokens: The candidates as they would be shown. (B, K, L)
        lengths: Content tokens of each. (B, K)
        weight: Weight of the similarity; zero leaves it out.
        similarity: What judges how well a caption fits its image.

    Returns:
        Index of the best candidate. (B,)

    Raises:
        ValueError: If a similarity is to be weighed and there is none.
    """
    if weight > 0 and log_probability.shape[1] > 1:
        if similarity is None:
            raise ValueError(f"refinement.similarity_weight = {weight} needs a similarity of images and captions")
        total = log_probability + weight * similarity(tokens, lengths).to(log_probability.dtype)
        log_probability = total.where(log_probability.isfinite(), log_probability)  # a beam without words has no place
    return log_probability.argmax(1)
