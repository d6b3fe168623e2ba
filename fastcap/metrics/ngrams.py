"""BLEU and CIDEr-D over a fixed set of references: their n-grams are counted once, candidates are scored as arrays.

The numbers equal pycocoevalcap's `Bleu(4)` and `Cider()`. The latter is CIDEr-D in truth: clipped counts and a Gaussian
penalty on the difference of lengths (sigma 6), not the plain CIDEr of the paper's first half.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ORDERS = 4
_SIGMA = 6.0
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's guards against division by zero


@dataclass(frozen=True)
class NgramScores:
    """Scores of one set of candidates, all in pycocoevalcap's own units (1.0 is BLEU 100, 10.0 the highest CIDEr-D).

    Attributes:
        bleu: BLEU-1 to BLEU-4 of the whole set. (4)
        bleu_each: The same of each image by itself. (images, 4)
        cider_each: CIDEr-D of each image; its mean is the set's. (images)
    """

    bleu: Array
    bleu_each: Array
    cider_each: Array


class ReferenceIndex:
    """The n-grams of all references of a set of images, ready to score any candidates for these images.

    One entry is one distinct n-gram of one reference. Entries are sorted by (image, n-gram), so one binary search finds
    all that a candidate's n-gram meets in its image: the highest count (BLEU), each reference's weight (CIDEr-D).

    Args:
        references: For each image its tokenised references, at least one; tokens joined by spaces.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        self._ids: dict[tuple[str, ...], int] = {}
        owners: list[int] = []
        images: list[int] = []
        grams: list[int] = []
        counts: list[int] = []
        lengths: list[int] = []
        for image, texts in enumerate(references):
            for text in texts:
                words = text.split()
                for gram, count in _count(words).items():
                    grams.append(self._ids.setdefault(gram, len(self._ids)))
                    counts.append(count)
                    images.append(image)
                    owners.append(len(lengths))
                lengths.append(len(words))
        self._num_images = len(references)
        self._num_grams = max(1, len(self._ids))
        self._lengths = np.array(lengths)
        self._image_of = np.repeat(np.arange(len(references)), [len(texts) for texts in references])
        self._first = np.cumsum([0, *(len(texts) for texts in references)])
        self._order = np.array([len(gram) - 1 for gram in self._ids], dtype=np.int64)

        keys = np.array(images, dtype=np.int64) * self._num_grams + np.array(grams, dtype=np.int64)
        sort = np.argsort(keys, kind="stable")
        self._keys, self._start, self._repeat = np.unique(keys[sort], return_index=True, return_counts=True)
        self._owner = np.array(owners, dtype=np.int64)[sort]
        gram_of = np.array(grams, dtype=np.int64)[sort]
        count_of = np.array(counts, dtype=np.float64)[sort]
        self._best = np.maximum.reduceat(count_of, self._start) if len(count_of) else count_of

        in_images = np.bincount(self._keys % self._num_grams, minlength=len(self._ids)).astype(np.float64)
        self._log_images = math.log(self._num_images) if self._num_images else 0.0
        self._idf = self._log_images - np.log(np.maximum(1.0, in_images))
        self._weight = count_of * self._idf[gram_of]
        self._norm = self._norms(self._owner * ORDERS + self._order[gram_of], self._weight, len(lengths))

    @staticmethod
    def _norms(cells: Array, weights: Array, rows: int) -> Array:
        return np.sqrt(np.bincount(cells, weights**2, minlength=rows * ORDERS)).reshape(rows, ORDERS)

    def score(self, candidates: Sequence[str]) -> NgramScores:
        """Score one tokenised candidate for each image, in the order of the references.

        Args:
            candidates: One for each image; tokens joined by spaces, "" for an empty caption.

        Returns:
            BLEU and CIDEr-D. An empty caption scores 0 in both.

        Raises:
            ValueError: There is not exactly one candidate for each image, or there are no images.
        """
        if len(candidates) != self._num_images or not candidates:
            raise ValueError(f"{len(candidates)} candidates for {self._num_images} images")
        rows: list[int] = []
        grams: list[int] = []
        counts: list[int] = []
        orders: list[int] = []
        lengths = np.zeros(len(candidates), dtype=np.int64)
        for image, text in enumerate(candidates):
            words = text.split()
            lengths[image] = len(words)
            for gram, count in _count(words).items():
                rows.append(image)
                grams.append(self._ids.get(gram, -1))
                counts.append(count)
                orders.append(len(gram) - 1)
        row, gram_id = np.array(rows, dtype=np.int64), np.array(grams, dtype=np.int64)
        count_of = np.array(counts, dtype=np.float64)
        cell = row * ORDERS + np.array(orders, dtype=np.int64)
        idf = np.full(len(row), self._log_images)  # an n-gram that no reference has
        idf[gram_id >= 0] = self._idf[gram_id[gram_id >= 0]]
        weight = count_of * idf
        norm = self._norms(cell, weight, len(candidates))

        key = row * self._num_grams + gram_id
        place = np.minimum(np.searchsorted(self._keys, key), max(0, len(self._keys) - 1))
        met = np.flatnonzero((gram_id >= 0) & (self._keys[place] == key)) if len(self._keys) else np.zeros(0, np.int64)
        place = place[met]
        matched = np.minimum(count_of[met], self._best[place])
        correct = np.bincount(cell[met], matched, minlength=len(candidates) * ORDERS).reshape(-1, ORDERS)
        cider = self._cider(lengths, norm, weight[met], cell[met] % ORDERS, place)
        return NgramScores(*self._bleu(lengths, correct), cider)

    def _cider(self, lengths: Array, norm: Array, weight: Array, order: Array, place: Array) -> Array:
        repeat = self._repeat[place]
        ends = np.cumsum(repeat)
        entry = (
            np.arange(ends[-1] if len(ends) else 0)
            - np.repeat(ends - repeat, repeat)
            + np.repeat(self._start[place], repeat)
        )
        theirs = self._weight[entry]
        products = np.minimum(np.repeat(weight, repeat), theirs) * theirs
        cells = self._owner[entry] * ORDERS + np.repeat(order, repeat)
        value: Array = np.bincount(cells, products, minlength=len(self._lengths) * ORDERS).reshape(-1, ORDERS)
        norms = norm[self._image_of] * self._norm
        value = value / np.where(norms == 0, 1.0, norms)
        # pycocoevalcap measures a caption's length in bigrams here
        delta = np.maximum(0, lengths - 1)[self._image_of] - np.maximum(0, self._lengths - 1)
        each = value.mean(axis=1) * np.exp(-(delta.astype(np.float64) ** 2) / (2 * _SIGMA**2))
        return 10.0 * np.bincount(self._image_of, each, minlength=self._num_images) / np.diff(self._first)

    def _bleu(self, lengths: Array, correct: Array) -> tuple[Array, Array]:
        # the reference of the closest length, the shorter one of two that are equally close
        distance = np.abs(self._lengths - lengths[self._image_of]) * (int(self._lengths.max()) + 1) + self._lengths
        closest = np.minimum.reduceat(distance, self._first[:-1]) % (int(self._lengths.max()) + 1)
        guess = np.maximum(0, lengths[:, None] - np.arange(ORDERS))
        each = _bleu(correct, guess, lengths, closest)
        return _bleu(correct.sum(0)[None], guess.sum(0)[None], lengths.sum()[None], closest.sum()[None])[0], each


def _bleu(correct: Array, guess: Array, lengths: Array, closest: Array) -> Array:
    precision = np.cumprod((correct + _TINY) / (guess + _SMALL), axis=1)
    ratio = (lengths + _TINY) / (closest + _SMALL)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(np.minimum(0.0, 1 - 1 / ratio)), 1.0)
    return precision ** (1.0 / np.arange(1, ORDERS + 1)) * brevity[:, None]


def _count(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter(zip(words, strict=True))
    for size in range(2, ORDERS + 1):
        counts.update(zip(*(words[start:] for start in range(size)), strict=False))
    return counts
