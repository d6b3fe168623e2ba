"""Concepts and phrases that images decide: words and pairs of words that the captions of an image agree on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fastcap.data.errors import log_once
from fastcap.data.tokenizer import CaptionTokenizer

Captions = Sequence[Sequence[Sequence[int]]]  # token ids of each training image's captions


class Phrases(NamedTuple):
    """Pairs of neighbouring words that an image decides ("tire swing"): visual phrases (Sadeghi and Farhadi 2011).

    Attributes:
        pairs: Ids of the two words, in ascending order. (P, 2)
        weights: How far captions agree on each, in (0, 1]. (P,)
        idf: Inverse document frequency of each. (P,)
    """

    pairs: list[tuple[int, int]]
    weights: list[float]
    idf: list[float]


def concept_agreement(
    captions: Captions, tokenizer: CaptionTokenizer, min_count: int
) -> tuple[list[float], list[float]]:
    """Measure how far the captions of one image agree on naming each concept, beyond coincidence.

    If one caption of an image names a concept, another does so with probability p; any caption of the set does with
    probability q. Then r = (p - q) / (1 - q) is the correlation of two captions' naming it, and the weight r^2 the
    share of its variance that the image explains: near one for "ring", near zero for "picture" or "there". So words
    of style do not drown what can be seen.

    Args:
        captions: Token ids of each training image's captions.
        tokenizer: Knows the concepts.
        min_count: Captions that hold a concept, at the least.

    Returns:
        A weight in [0, 1] for each concept, zero for rarer ones, and its inverse document frequency: log of all images
        over those a caption of which holds it. (C,)
    """
    concept_of = np.array(tokenizer.concepts())
    found, mentions, agreement, idf = _agreement(captions, lambda ids: concept_of[ids])
    weights, rarity = (np.full(int(concept_of.max()) + 1, start) for start in (0.0, math.log(len(captions))))
    weights[found], rarity[found] = np.where(mentions >= min_count, agreement, 0.0), idf
    return weights.tolist(), rarity.tolist()


def agreed_phrases(captions: Captions, tokenizer: CaptionTokenizer, min_count: int) -> Phrases:
    """Find the pairs of neighbouring words that ``min_count`` captions hold and images decide, weighted as concepts."""
    size = tokenizer.vocab_size
    special = np.array(tokenizer.special.ids)

    def pairs(ids: np.ndarray) -> np.ndarray:
        codes = ids[:-1] * size + ids[1:]
        return np.where(np.isin(ids[:-1], special) | np.isin(ids[1:], special), -1, codes)

    found, mentions, agreement, idf = _agreement(captions, pairs)
    kept = (mentions >= min_count) & (agreement > 0)
    log_once(f"phrases that images learn to predict: {kept.sum()}")
    both = zip(*(ids.tolist() for ids in np.divmod(found[kept], size)), strict=True)
    return Phrases(list(both), agreement[kept].tolist(), idf[kept].tolist())


def _agreement(
    captions: Captions, units: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count what captions hold (``units`` of their ids; negative ones count nothing) and how far they agree on it.

    Returns:
        What was found, ascending, in how many captions, and r^2 and inverse document frequency of each.
    """
    # Captions, their images, pairs of captions, and pairs that agree.
    mentions, images, others, both = Counter[int](), Counter[int](), Counter[int](), Counter[int]()
    for rows in captions:
        held = Counter(code for ids in rows for code in set(units(np.array(ids, np.int64)).tolist()) if code >= 0)
        images.update(held.keys())  # one each
        for code, count in held.items():
            mentions[code] += count
            others[code] += count * (len(rows) - 1)
            both[code] += count * (count - 1)
    found = np.array(sorted(mentions), np.int64)
    counted, possible, agreeing, holding = (
        np.array([count[code] for code in sorted(mentions)]) for count in (mentions, others, both, images)
    )
    agreement = agreeing / np.maximum(possible, 1)
    expected = counted / max(sum(map(len, captions)), 1)
    weight = np.clip((agreement - expected) / np.maximum(1 - expected, 1e-6), 0.0, 1.0) ** 2
    return found, counted, weight, np.log(len(captions) / holding)
