"""Collect the captions of an evaluation and score them, split by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchmetrics import Metric

from fastcap.metrics.caption import CaptionMetrics
from fastcap.metrics.text import caption_faults


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
        extra_metrics: Further metrics of a split, each ``update(image_ids, captions)``; asked for once a split.
        oracle_captions: Captions by image id that a perfect captioner might give, where a split knows them.

    Attributes:
        predictions: This process's captions since ``reset``.
    """

    def __init__(
        self,
        splits: Sequence[str] = ("val",),
        metric_options: Mapping[str, Any] | None = None,
        extra_metrics: Callable[[str], Mapping[str, Metric]] | None = None,
        oracle_captions: Callable[[str], Mapping[int, str]] | None = None,
    ) -> None:
        self.splits = list(splits)
        self.metric_options = dict(metric_options or {})
        self.predictions: list[Prediction] = []
        self._make_extra = extra_metrics or (lambda split: {})
        self._find_oracle = oracle_captions or (lambda split: {})
        self._metrics: dict[str, tuple[CaptionMetrics, Mapping[str, Metric]]] = {}
        self._oracle: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The split, or "val" for several together."""
        return self.splits[0] if len(self.splits) == 1 else "val"

    def reset(self, device: torch.device) -> None:
        """Start afresh; tensors that are gathered over processes go to ``device``."""
        self.predictions = []
        for split in self.splits:
            if split not in self._metrics:
                made = {name: metric.to(device) for name, metric in self._make_extra(split).items()}
                self._metrics[split] = CaptionMetrics(**self.metric_options).to(device), made
            caption_metrics, extra = self._metrics[split]
            for metric in (caption_metrics, *extra.values()):
                metric.reset()

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Add captions of one split."""
        self.predictions += predictions
        caption_metrics, extra = self._metrics[predictions[0].split]
        ids, captions = [p.image_id for p in predictions], [p.caption for p in predictions]
        caption_metrics.update(ids, captions, [p.references for p in predictions])
        for metric in extra.values():
            metric.update(ids, captions)

    def compute(self, split: str, everybodys: Sequence[Prediction]) -> dict[str, float]:
        """Compute a split's metrics, its oracle's CIDEr where it has one, and the faults of its captions.

        Under DDP every process must call this, with the captions of all processes.
        """
        caption_metrics, extra = self._metrics[split]
        values = dict(caption_metrics.compute())
        for metric in extra.values():
            values |= metric.compute()
        values |= self._oracle_score(split, caption_metrics.device)
        captions = {p.image_id: p.caption for p in everybodys if p.split == split}
        if captions:
            faults = caption_faults(list(captions.values()))
            values |= {name: faults[name] for name in ("distinct", "repetitions")}
        return values

    def image_scores(self) -> dict[int, dict[str, float]]:
        """Return each image's own scores by image id; under DDP every process must call this."""
        scores: dict[int, dict[str, float]] = {}
        for split in self.splits:
            scores |= self._metrics[split][0].compute_per_image()
        return scores

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer that the scores come from."""
        return self._metrics[self.splits[0]][0].tokenizer_name

    def _oracle_score(self, split: str, device: torch.device) -> dict[str, float]:
        """CIDEr of the oracle's captions on the images just captioned, where the split has an oracle."""
        oracle = self._find_oracle(split)
        if not oracle:
            return {}
        if split not in self._oracle:
            metric = CaptionMetrics(**self.metric_options).to(device)
            rows = [row for row in self.predictions if row.split == split]
            metric.update([r.image_id for r in rows], [oracle[r.image_id] for r in rows], [r.references for r in rows])
            self._oracle[split] = metric.compute()["cider"]
        return {"cider_oracle": self._oracle[split]}
