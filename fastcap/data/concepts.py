"""Which words an image decides: those that its captions agree on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastcap.data.tokenizer import CaptionTokenizer

MIN_MENTIONS = 5


def concept_agreement(captions: Sequence[Sequence[str]], tokenizer: CaptionTokenizer) -> list[float]:
    """Measure how far the captions of one image agree on naming each concept, beyond chance.

    If one caption of an image names a concept, another does so with probability p; any caption of the set does with
    probability q. Then r = (p - q) / (1 - q) is the correlation of two captions' naming it, and the weight r^2 the
    share of its variance that the image explains: near one for "ring", near zero for "picture" or "there". So words
    of style do not drown what can be seen.

    Args:
        captions: Captions of each training image.
        tokenizer: Knows the concepts.

    Returns:
        A weight in [0, 1] for each concept; zero for those named fewer than MIN_MENTIONS times. (C,)
    """
    concept_of = np.array(tokenizer.concepts())
    size = int(concept_of.max()) + 1
    mentions, others, both, total = np.zeros(size), np.zeros(size), np.zeros(size), 0
    encoded = iter(tokenizer.encode_batch([text for texts in captions for text in texts]))
    for texts in captions:
        counts = np.zeros(size)
        for _ in texts:
            named = np.unique(concept_of[next(encoded)])
            counts[named[named >= 0]] += 1
        mentions += counts
        others += counts * (len(texts) - 1)
        both += counts * (counts - 1)
        total += len(texts)
    agreement = both / np.maximum(others, 1)
    chance = mentions / max(total, 1)
    weight = np.clip((agreement - chance) / np.maximum(1 - chance, 1e-6), 0.0, 1.0) ** 2
    return [float(w) for w in np.where(mentions >= MIN_MENTIONS, weight, 0.0)]
