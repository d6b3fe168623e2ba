"""Faults of generated captions that need no references: sameness, stuttering, length."""

from collections.abc import Sequence
from itertools import pairwise


def caption_faults(captions: Sequence[str]) -> dict[str, float]:
    """Measure what typically goes wrong in non-autoregressive captions. Words are split at white space, case ignored.

    Args:
        captions: Generated captions.

    Returns:
        `distinct`: share of distinct captions x 100 (100: no two alike). `repetitions`: share of captions in which a
        word follows itself ("a a dog") x 100. `length_mean`: mean number of words.

    Raises:
        ValueError: There are no captions.
    """
    if not captions:
        raise ValueError("caption_faults needs at least one caption")
    words = [caption.casefold().split() for caption in captions]
    return {
        "distinct": 100.0 * len(set(map(tuple, words))) / len(words),
        "repetitions": 100.0 * sum(any(a == b for a, b in pairwise(each)) for each in words) / len(words),
        "length_mean": sum(map(len, words)) / len(words),
    }
