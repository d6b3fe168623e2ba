"""Refinement without torch: ``fastcap.generation.icmr.ICMRDecoder`` again, step for step, in numpy.

An export is to start fast and to stay small in memory, and torch alone takes seconds and hundreds of megabytes. A test
holds the two together: same drafts, same captions, for every schedule, number of steps and lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastcap.serving.chain import BigramTable, Links, choose_together
from fastcap.serving.network import Decoded, Draft
from fastcap.types import SpecialTokens

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: math.cos(math.pi / 2 * progress),
}

# (tokens, lengths) of K captions an image, (B, K, L) and (B, K), to each position's likeliest words and their
# log-probabilities, the best first, both (B, K, L, k).
Predict = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Finished captions (B, K, L) and their lengths (B, K) to how well each fits its image, (B, K).
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RefinementSettings:
    """The keys of the configuration's ``refinement`` group, as ``ICMRDecoder`` has them.

    Raises:
        ValueError: If a value is refused.
    """

    num_steps: int = 4
    schedule: str = "linear"
    num_lengths: int = 3
    collapse_repeats: bool = False
    bigram_weight: float = 0.0
    num_choices: int = 4
    naming_weight: float = 0.0
    naming_cost: float = 0.4
    concept_weight: float = 0.0
    phrase_weight: float = 0.0
    trigram_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_lengths", "num_choices"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"refinement.{name} = {value!r} must be a whole number, at least 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"refinement.schedule = {self.schedule!r} must be one of {', '.join(SCHEDULES)}")
        if not isinstance(self.collapse_repeats, bool):
            raise ValueError(f"refinement.collapse_repeats = {self.collapse_repeats!r} must be true or false")
        for item in fields(self):
            name, weight = item.name, getattr(self, item.name)
            if not name.endswith(("_weight", "_cost")):
                continue
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
                raise ValueError(f"refinement.{name} = {weight!r} must be a number, not negative")

    def changed(self, values: Mapping[str, Any]) -> RefinementSettings:
        """Return the settings with other values for some keys.

        Raises:
            ValueError: If a key is unknown or a value refused.
        """
        known = [item.name for item in fields(self)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"refinement.{unknown[0]}: an exported model knows {', '.join(known)}")
        return replace(self, **values)


def refine(
    predict: Predict,
    length_logits: np.ndarray,
    special: SpecialTokens,
    settings: RefinementSettings,
    record_steps: bool = False,
    links: Links | None = None,
    naming: Score | None = None,
) -> Decoded:
    """Caption a batch of images; the numbers are those of ``ICMRDecoder.generate``.

    Args:
        predict: The decoder's step on these images, special tokens excluded.
        length_logits: Scores of the lengths 1..max_length. (B, max_length)
        special: The special token ids.
        settings: How to refine.
        record_steps: Keep every step of the chosen candidates.
        links: What neighbours gain, where ``bigram_weight``, ``phrase_weight`` or ``trigram_weight`` is above zero.
        naming: Asked how many concepts each candidate is expected to name rightly, where ``naming_weight`` is.

    Raises:
        ValueError: If neighbours or naming are to be weighed and there is nothing to tell them.
    """
    weighed = [n for n in ("bigram_weight", "phrase_weight", "trigram_weight") if getattr(settings, n) > 0]
    if not weighed:
        links = None
    elif links is None:
        name = weighed[0]
        raise ValueError(f"refinement.{name} = {getattr(settings, name)} needs a table of neighbours")

    # 1. The likeliest lengths, K an image.
    lengths = np.argsort(-length_logits, axis=1, kind="stable")[:, : settings.num_lengths] + 1

    # 2. Start from nothing but [MASK].
    pad = np.arange(lengths.max()) >= lengths[..., None]
    tokens = np.where(pad, special.pad, special.mask)
    confidence = np.zeros(pad.shape, np.float32)
    steps: list[Draft] = []

    for step in range(1, settings.num_steps + 1):
        # 3. Predict all, write where masked.
        words, chances = predict(tokens, lengths)
        masked = tokens == special.mask
        if links is not None:
            choices = words[..., : settings.num_choices], chances[..., : settings.num_choices]
            predicted, log_probability, together = choose_together(*choices, tokens, masked, pad, links)
        else:
            predicted, log_probability = words[..., 0], chances[..., 0]
        tokens = np.where(masked, predicted, tokens)
        confidence = np.where(masked, log_probability, confidence)
        # 4. Mask the least certain again; none after the last step.
        count = num_to_remask(lengths, step, settings.num_steps, SCHEDULES[settings.schedule])
        remasked = lowest(np.where(pad, np.inf, confidence), count)
        if record_steps:
            steps.append(Draft(tokens, np.where(pad, 0.0, np.exp(confidence)), remasked))
        if not count.any():
            break
        tokens = np.where(remasked, special.mask, tokens)

    # 5. The candidate whose words are likeliest on average, go together and name what is there.
    scores = np.where(pad, 0.0, confidence).sum(2, dtype=np.float32) / lengths.astype(np.float32)
    shown, final = collapse(tokens, special.pad) if settings.collapse_repeats else (tokens, lengths)
    total = scores
    if links is not None:
        total = scores + together / lengths.astype(np.float32)
    if settings.naming_weight > 0 and lengths.shape[1] > 1:
        if naming is None:
            raise ValueError(f"refinement.naming_weight = {settings.naming_weight} needs the image's concepts")
        cost = np.float32(settings.naming_cost) * final.astype(np.float32)
        total = total + np.float32(settings.naming_weight) * (naming(shown, final) - cost)
    rows = np.arange(len(lengths))
    best = total.argmax(1)
    chosen = [Draft(s.tokens[rows, best], s.confidence[rows, best], s.remasked[rows, best]) for s in steps]
    return Decoded(shown[rows, best], final[rows, best], scores[rows, best], lengths[rows, best], chosen)


def num_to_remask(lengths: np.ndarray, step: int, num_steps: int, schedule: Callable[[float], float]) -> np.ndarray:
    """Tokens of each caption to hide again after ``step``; as ``fastcap.generation.schedule.num_to_remask``."""
    if step >= num_steps:
        return np.zeros_like(lengths)
    share = lengths.astype(np.float32) * np.float32(schedule(step / num_steps)) + np.float32(1e-6)
    return np.minimum(share.astype(np.int64), lengths - 1)


def lowest(score: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mark the ``count`` lowest scores along the last axis; equal scores go by position."""
    rank = np.argsort(np.argsort(score, axis=-1, kind="stable"), axis=-1)
    return rank < count[..., None]


def collapse(tokens: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Leave out tokens that equal the one before; returns tokens (..., L) and lengths (...)."""
    before = np.concatenate([np.full_like(tokens[..., :1], pad_id), tokens[..., :-1]], axis=-1)
    kept = (tokens != before) & (tokens != pad_id)
    order = np.argsort(~kept, axis=-1, kind="stable")
    lengths = kept.sum(-1)
    beyond = np.arange(tokens.shape[-1]) >= lengths[..., None]
    return np.where(beyond, pad_id, np.take_along_axis(tokens, order, -1)), lengths


def expected_names(
    probability: np.ndarray, concepts: np.ndarray, table: BigramTable, tokens: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Sum the probabilities of each caption's concepts and phrases, as ``CrossModalFeatureAlignment.naming`` does.

    Args:
        probability: Of each concept, then of each phrase. (B, C + P)
        concepts: The concept behind each word, -1 for a word without one. (V,)
        table: Knows the phrases.
        tokens: Caption ids. (B, K, L)
        lengths: Content tokens of each caption. (B, K)

    Returns:
        Each concept and phrase of a caption counted once. (B, K)
    """
    inside = np.arange(tokens.shape[2]) < lengths[..., None]
    found = np.where(inside, concepts[tokens], -1)
    if len(table.phrases):
        place = np.where(inside[..., 1:], table.place(tokens[..., :-1], tokens[..., 1:]), -1)
        first = probability.shape[1] - len(table.phrases)
        found = np.concatenate([found, np.where(place < 0, -1, place + first)], axis=2)
    named = np.zeros((*tokens.shape[:2], probability.shape[1] + 1), np.float32)
    np.put_along_axis(named, found, 1.0, axis=2)  # -1 is the last place
    return (named[..., :-1] * probability[:, None]).sum(2, dtype=np.float32)


def join(parts: list[tuple[np.ndarray, Decoded]], pad_id: int) -> Decoded:
    """Put captions of parts of a batch together again.

    Args:
        parts: The rows of each part in the batch, and its captions.
        pad_id: Id of [PAD].
    """
    if len(parts) == 1:
        return parts[0][1]
    batch = sum(len(rows) for rows, _ in parts)
    longest = max(part.tokens.shape[1] for _, part in parts)

    def joined(values: list[np.ndarray], fill: float) -> np.ndarray:
        shape = (batch, longest) if values[0].ndim == 2 else (batch,)
        whole = np.full(shape, fill, values[0].dtype)
        for (rows, _), value in zip(parts, values, strict=True):
            whole[(rows, slice(value.shape[1])) if value.ndim == 2 else rows] = value
        return whole

    drafts = []
    for number in range(max(len(part.drafts) for _, part in parts)):
        # A part that was done earlier keeps its last draft.
        now = [part.drafts[min(number, len(part.drafts) - 1)] for _, part in parts]
        drafts.append(
            Draft(
                joined([d.tokens for d in now], pad_id),
                joined([d.confidence for d in now], 0.0),
                joined([d.remasked for d in now], False),
            )
        )
    return Decoded(
        joined([part.tokens for _, part in parts], pad_id),
        joined([part.lengths for _, part in parts], 0),
        joined([part.scores for _, part in parts], 0.0),
        joined([part.drafted_lengths for _, part in parts], 0),
        drafts,
    )
