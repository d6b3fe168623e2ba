"""One image's refinement as plain values: what the picture and the table are made from."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastcap.types import Refinement

COLUMNS = ("image_id", "step", "position", "token", "confidence", "remasked")


@dataclass
class StepTrace:
    """One refinement step of one image; every list holds one value a caption position.

    Attributes:
        tokens: The drafted words, or pieces of words.
        confidence: Probability with which each was written, 0 to 1.
        remasked: True where the step masked the word again.
        written: True where this step wrote the word; the others stand since an earlier step.
    """

    tokens: list[str]
    confidence: list[float]
    remasked: list[bool]
    written: list[bool]


@dataclass
class RefinementTrace:
    """One image's refinement.

    Attributes:
        name: The image's id or file name.
        image: Pixels, uint8, RGB. (H, W, 3)
        caption: What refinement settled on.
        score: Mean log-probability of its tokens.
        steps: Every decoder pass, in order.
        expert_weights: Weight of each expert, summing to one; empty where the decoder has none.
        reference: A caption by a person, where one is known.
    """

    name: str
    image: np.ndarray
    caption: str
    score: float
    steps: list[StepTrace]
    expert_weights: list[float] = field(default_factory=list)
    reference: str = ""


def trace_refinement(
    refinement: Refinement,
    row: int,
    name: str,
    image: np.ndarray,
    decode: Callable[[list[int]], str],
    reference: str = "",
) -> RefinementTrace:
    """Read one image out of a recorded batch.

    Args:
        refinement: From ``generate(..., record_steps=True)``.
        row: The image's place in the batch.
        name: Its id or file name.
        image: Its pixels, uint8, RGB. (H, W, 3)
        decode: Token ids to text.
        reference: A caption by a person, where one is known.
    """
    length = int(refinement.drafted_lengths[row])
    steps: list[StepTrace] = []
    written = [True] * length
    for step in refinement.steps:
        remasked = step.remasked[row, :length].tolist()
        words = [decode([token]) for token in step.tokens[row, :length].tolist()]
        steps.append(StepTrace(words, step.confidence[row, :length].tolist(), remasked, written))
        written = remasked
    weights = refinement.expert_weights
    return RefinementTrace(
        name,
        image,
        decode(refinement.tokens[row, : int(refinement.lengths[row])].tolist()),
        float(refinement.scores[row]),
        steps,
        [] if weights is None else weights[row].float().tolist(),
        reference,
    )


def trace_rows(traces: Iterable[RefinementTrace]) -> list[list[str | int | float]]:
    """List every token of every step, in the order of ``COLUMNS``; steps and positions count from 1."""
    return [
        [trace.name, number, position, token, round(confidence, 4), int(remasked)]
        for trace in traces
        for number, step in enumerate(trace.steps, start=1)
        for position, (token, confidence, remasked) in enumerate(
            zip(step.tokens, step.confidence, step.remasked, strict=True), start=1
        )
    ]


def write_traces(path: Path, traces: Sequence[RefinementTrace]) -> None:
    """Write every token of every step as CSV: image_id, step, position, token, confidence, remasked (0 or 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(trace_rows(traces))
