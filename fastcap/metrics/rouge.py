"""ROUGE-L as pycocoevalcap computes it: F with beta 1.2 over the best precision and recall; a bit-parallel LCS."""

from collections.abc import Sequence

_BETA_SQUARED = 1.2**2


def lcs_length(candidate: Sequence[str], reference: Sequence[str], masks: dict[str, int] | None = None) -> int:
    """Count the tokens of the longest common subsequence (Hyyrö's bit-parallel recurrence on one Python integer).

    Args:
        candidate: Tokens of one caption.
        reference: Tokens of the other.
        masks: `position_masks(candidate)` where the caller has it already.

    Returns:
        The length of the longest common subsequence, in tokens.
    """
    masks = position_masks(candidate) if masks is None else masks
    full = (1 << len(candidate)) - 1
    rows = full
    for token in reference:
        mask = masks.get(token)
        if mask is not None:
            matched = rows & mask
            rows = (rows + matched | rows - matched) & full
    return len(candidate) - rows.bit_count()


def position_masks(tokens: Sequence[str]) -> dict[str, int]:
    """Mark where each token stands.

    Args:
        tokens: Tokens of one caption.

    Returns:
        For each distinct token, an integer with bit i set where it stands at position i.
    """
    masks: dict[str, int] = {}
    for position, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << position
    return masks


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Score one caption. As in pycocoevalcap, an empty caption equals an empty reference.

    Args:
        candidate: Tokenised caption, tokens joined by spaces.
        references: Its tokenised references, at least one.

    Returns:
        ROUGE-L in [0, 1].
    """
    tokens = candidate.split(" ")
    masks = position_masks(tokens)
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = lcs_length(tokens, others, masks)
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)
