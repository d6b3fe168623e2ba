"""CIDEr-D of sampled captions as a training reward, on token ids: no text, no tokenizer, no corpus pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

Gram = tuple[int, ...]
ORDERS = 4
_SIGMA = 6.0


class CiderReward:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) against fixed references, document frequencies theirs too.

    The formula is that of ``CaptionMetrics``; words are the captioner's own, so an unknown word of a reference is
    matched by nothing, and scores differ a little from those of PTB's words.

    Args:
        references: Token ids of each image's captions, by image id.
    """

    def __init__(self, references: Mapping[int, Sequence[Sequence[int]]]) -> None:
        counted = {image: [_count(tokens) for tokens in captions] for image, captions in references.items()}
        frequency: Counter[Gram] = Counter()
        for captions in counted.values():
            frequency.update(set().union(*captions))
        self._log_images = math.log(max(len(references), 1))
        self._idf = {gram: self._log_images - math.log(number) for gram, number in frequency.items()}
        self._references = {
            image: [(weights := self._weights(counts), _norms(weights), _bigrams(counts)) for counts in captions]
            for image, captions in counted.items()
        }

    def __call__(self, image_ids: Sequence[int], captions: Sequence[Sequence[int]]) -> list[float]:
        """Score captions.

        Args:
            image_ids: The image of each caption.
            captions: Token ids.

        Returns:
            CIDEr-D of each caption, 10 at most.

        Raises:
            KeyError: If an image has no references.
        """
        pairs = zip(image_ids, captions, strict=True)
        return [self._score(self._references[image], _count(ids)) for image, ids in pairs]

    def _weights(self, counts: Counter[Gram]) -> dict[Gram, float]:
        return {gram: count * self._idf.get(gram, self._log_images) for gram, count in counts.items()}

    def _score(self, references: Sequence[tuple[dict[Gram, float], list[float], int]], counts: Counter[Gram]) -> float:
        weights = self._weights(counts)
        norms, length = _norms(weights), _bigrams(counts)
        total = 0.0
        for theirs, their_norms, their_length in references:
            products = [0.0] * ORDERS
            for gram, weight in weights.items():
                other = theirs.get(gram)
                if other is not None:
                    products[len(gram) - 1] += min(weight, other) * other
            cosine = sum(p / (a * b) for p, a, b in zip(products, norms, their_norms, strict=True) if a * b > 0)
            total += cosine / ORDERS * math.exp(-((length - their_length) ** 2) / (2 * _SIGMA**2))
        return 10.0 * total / max(len(references), 1)


def _count(tokens: Sequence[int]) -> Counter[Gram]:
    tokens = tuple(tokens)
    return Counter(tokens[at : at + size] for size in range(1, ORDERS + 1) for at in range(len(tokens) - size + 1))


def _norms(weights: Mapping[Gram, float]) -> list[float]:
    squares = [0.0] * ORDERS
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight * weight
    return [math.sqrt(square) for square in squares]


def _bigrams(counts: Counter[Gram]) -> int:
    """A caption's length as pycocoevalcap measures it: in bigrams."""
    return sum(count for gram, count in counts.items() if len(gram) == 2)
