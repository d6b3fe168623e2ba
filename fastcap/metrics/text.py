"""Faults of generated captions that need no references: sameness, stuttering, length."""

from collections import Counter
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


def count_lengths(captions: Sequence[str]) -> dict[str, int]:
    """Count captions by their number of words, split at white space; the numbers ascend (as texts, JSON's keys)."""
    counts = Counter(len(caption.split()) for caption in captions)
    return {str(length): counts[length] for length in sorted(counts)}
