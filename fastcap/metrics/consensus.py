"""The reference of an image that its others agree with most."""

from __future__ import annotations

from collections.abc import Sequence

from fastcap.metrics.reward import CiderReward
from fastcap.metrics.simple import simple_tokenize


def consensus(captions: Sequence[Sequence[str]]) -> list[int]:
    """Choose each image's caption of the highest CIDEr-D against its other captions (consensus, arXiv 1411.5726).

    Trained on one such caption an image, a model that writes all words at once meets fewer ways of saying the same.

    Args:
        captions: Captions of each image, at least one.

    Returns:
        The place of the chosen caption of each image, the first of equals.
    """
    numbers: dict[str, int] = {}
    references = {
        image: [[numbers.setdefault(word, len(numbers)) for word in simple_tokenize(text).split()] for text in texts]
        for image, texts in enumerate(captions)
    }
    reward = CiderReward(references)
    chosen = []
    for image, tokens in references.items():
        # Against all captions of the image, its own included: that adds the same to every one of them.
        scores = reward([image] * len(tokens), tokens)
        chosen.append(max(range(len(tokens)), key=scores.__getitem__))
    return chosen
