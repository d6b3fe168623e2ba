"""BLEU, CIDEr-D and ROUGE-L of tokenised captions, equal to pycocoevalcap's `Bleu(4)`, `Cider()` and `Rouge()`.

`Cider()` is CIDEr-D in truth: clipped counts and a Gaussian penalty on the difference of lengths (sigma 6), not the
plain CIDEr of the paper's first half.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

Gram = tuple[Hashable, ...]
ORDERS = 4
_SIGMA = 6.0
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's guards against division by zero
_BETA_SQUARED = 1.2**2


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726) against fixed references, document frequencies theirs too.

    Tokens may be words, or a captioner's own ids: then it is a reward for training that needs no text.

    Args:
        references: Tokens of each image's captions, by image id.
    """

    def __init__(self, references: Mapping[int, Sequence[Sequence[Hashable]]]) -> None:
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

    def __call__(self, image_ids: Sequence[int], captions: Sequence[Sequence[Hashable]]) -> list[float]:
        """Score captions by their tokens: CIDEr-D of each, 10 at most; ``KeyError`` for an image without references."""
        pairs = zip(image_ids, captions, strict=True)
        return [self._score(self._references[image], _count(tokens)) for image, tokens in pairs]

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


def _count(tokens: Sequence[Hashable]) -> Counter[Gram]:
    counts: Counter[Gram] = Counter()
    for size in range(1, ORDERS + 1):
        counts.update(zip(*(tokens[start:] for start in range(size)), strict=False))
    return counts


def _norms(weights: Mapping[Gram, float]) -> list[float]:
    squares = [0.0] * ORDERS
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight * weight
    return [math.sqrt(square) for square in squares]


def _bigrams(counts: Counter[Gram]) -> int:
    """A caption's length as pycocoevalcap measures it: in bigrams."""
    return sum(count for gram, count in counts.items() if len(gram) == 2)


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[float], list[list[float]]]:
    """Score one candidate for each image (Papineni et al. 2002).

    Args:
        candidates: Their words. (N)
        references: Words of each image's references, at least one. (N)

    Returns:
        BLEU-1 to BLEU-4 in [0, 1] of the whole set, (4), and of each image by itself, (N, 4).
    """
    correct = np.zeros((len(candidates), ORDERS))
    lengths, closest = np.array([len(words) for words in candidates]), np.zeros(len(candidates))
    for image, (words, texts) in enumerate(zip(candidates, references, strict=True)):
        best: Counter[Gram] = reduce(or_, map(_count, texts))
        for gram, count in _count(words).items():
            correct[image, len(gram) - 1] += min(count, best[gram])
        # The reference of the closest length, the shorter one of two that are equally close.
        closest[image] = min((abs(len(text) - len(words)), len(text)) for text in texts)[1]
    guess = np.maximum(0, lengths[:, None] - np.arange(ORDERS))
    whole = _bleu(correct.sum(0)[None], guess.sum(0)[None], lengths.sum()[None], closest.sum()[None])
    return whole[0].tolist(), _bleu(correct, guess, lengths, closest).tolist()


def _bleu(
    correct: NDArray[Any], guess: NDArray[Any], lengths: NDArray[Any], closest: NDArray[Any]
) -> NDArray[np.float64]:
    precision = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=1)
    ratio = (lengths + _TINY) / (closest + _SMALL)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(np.minimum(0.0, 1 - 1 / ratio)), 1.0)
    scores: NDArray[np.float64] = precision ** (1.0 / np.arange(1, ORDERS + 1)) * brevity[:, None]
    return scores


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Score one caption in [0, 1]: F with beta 1.2 over the best precision and recall (Lin 2004).

    Args:
        candidate: Tokens joined by spaces. As in pycocoevalcap, an empty one equals an empty reference.
        references: Its references likewise, at least one.
    """
    tokens = candidate.split(" ")
    masks: dict[str, int] = {}  # bit i is set where the token stands at position i
    for position, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << position
    full = (1 << len(tokens)) - 1
    precision = recall = 0.0
    for reference in references:
        # The longest common subsequence by Hyyrö's bit-parallel recurrence, on one Python integer.
        others, rows = reference.split(" "), full
        for token in others:
            matched = rows & masks.get(token, 0)
            rows = (rows + matched | rows - matched) & full
        common = len(tokens) - rows.bit_count()
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)
