"""Collect the captions of an evaluation and score them, split by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcap.metrics.caption import CaptionMetrics, caption_faults
from fastcap.types import CaptionRecords
from fastcap.utils.distributed import collective, gather_list


@dataclass
class Prediction:
    """One generated caption beside its references."""

    image_id: int
    caption: str
    score: float
    references: list[str]
    split: str = "val"


class CaptionEvaluation:
    """The captions of one split, or of several, and their scores.

    Args:
        splits: Names of the splits.
        metric_options: Arguments of ``CaptionMetrics``.
        records: Finds a split by name: it may score captions in its own way, and know an oracle's captions.

    Attributes:
        predictions: This process's captions since ``reset``; after ``compute`` those of all processes, each image once.
        image_scores: Each image's own scores by image id, after ``compute``.
    """

    def __init__(
        self,
        splits: Sequence[str],
        metric_options: Mapping[str, Any],
        records: Callable[[str], CaptionRecords],
    ) -> None:
        self.splits = list(splits)
        self.metric_options = dict(metric_options)
        self.metrics = CaptionMetrics(**metric_options)
        self.predictions: list[Prediction] = []
        self.image_scores: dict[int, dict[str, float]] = {}
        self._records = records
        self._oracle: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The split, or "val" for several together."""
        return self.splits[0] if len(self.splits) == 1 else "val"

    def reset(self) -> None:
        """Start afresh."""
        self.predictions, self.image_scores = [], {}

    def compute(self) -> dict[str, dict[str, float]]:
        """Compute each split's metrics: scores, the faults of its captions, and its oracle's CIDEr where it has one.

        Under DDP every process must call this; all get the same.
        """
        with collective():
            everybodys = gather_list(self.predictions)
        self.predictions = list({p.image_id: p for p in everybodys}.values())
        return {split: self._compute(split) for split in self.splits}

    def _compute(self, split: str) -> dict[str, float]:
        rows = [p for p in self.predictions if p.split == split]
        ids, captions = [p.image_id for p in rows], [p.caption for p in rows]
        references = [p.references for p in rows]
        scores = self.metrics.score(ids, captions, references)
        self.image_scores |= scores.images
        records, faults = self._records(split), caption_faults(captions)
        values = scores.metrics | records.score(dict(zip(ids, captions, strict=True)))
        values |= {name: faults[name] for name in ("distinct", "repetitions")}
        if records.oracle_captions:
            if split not in self._oracle:
                oracle = [records.oracle_captions[image_id] for image_id in ids]
                self._oracle[split] = self.metrics.score(ids, oracle, references).metrics["cider"]
            values["cider_oracle"] = self._oracle[split]
        return values
