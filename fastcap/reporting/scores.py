"""Every image's scores: as a table, and the captions worth looking at."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHOWN = 9  # captions a section


@dataclass
class ScoredCaption:
    """One image's caption with its scores.

    Attributes:
        image_id: The image's id.
        caption: The generated caption.
        references: Its reference captions.
        scores: ``bleu4``, ``rouge_l`` and ``cider``, times 100.
        file_name: The image's file, "" where unknown.
        confidence: Geometric mean of the tokens' probabilities, where known.
    """

    image_id: int
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]
    file_name: str = ""
    confidence: float | None = None

    @property
    def length(self) -> int:
        """Words of the caption, split at white space."""
        return len(self.caption.split())

    @property
    def words(self) -> list[tuple[str, bool]]:
        """Each word of the caption, and whether some reference has it."""
        known = {_bare(word) for text in self.references for word in text.split()}
        return [(word, _bare(word) in known) for word in self.caption.split()]


def score_captions(
    image_ids: Sequence[int],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    scores: Mapping[int, Mapping[str, float]],
    file_names: Sequence[str] | None = None,
    confidences: Sequence[float] | None = None,
) -> list[ScoredCaption]:
    """Put captions beside their scores.

    Args:
        image_ids: Ids, each once. (N)
        captions: One for each. (N)
        references: At least one for each. (N)
        scores: ``bleu4``, ``rouge_l`` and ``cider`` of each image, times 100, by image id.
        file_names: Image files, where known. (N)
        confidences: Of the captions, in [0, 1]. (N)
    """
    return [
        ScoredCaption(
            image_id,
            captions[i],
            references[i],
            scores[image_id],
            file_names[i] if file_names else "",
            confidences[i] if confidences else None,
        )
        for i, image_id in enumerate(image_ids)
    ]


def write_scores(captions: Sequence[ScoredCaption], path: Path) -> None:
    """Write one CSV row an image; scores are times 100, lengths in words."""
    with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "file_name", "caption", "bleu4", "rouge_l", "cider", "length", "confidence"])
        for row in captions:
            scores = [f"{row.scores[name]:.4f}" for name in ("bleu4", "rouge_l", "cider")]
            confidence = "" if row.confidence is None else f"{row.confidence:.4f}"
            writer.writerow([row.image_id, row.file_name, row.caption, *scores, row.length, confidence])


def choose(captions: Sequence[ScoredCaption], number: int = SHOWN) -> dict[str, list[ScoredCaption]]:
    """Pick the best, the median and the worst captions by CIDEr-D; no image is picked twice.

    Args:
        captions: All of them.
        number: At most so many of each kind.

    Returns:
        Captions by kind, best first; a set too small for three kinds is "All captions".
    """
    ranked = sorted(captions, key=lambda c: (-c.scores["cider"], -c.scores["rouge_l"], -c.scores["bleu4"], c.image_id))
    number = min(number, len(ranked) // 3)
    if not number:
        return {"All captions": ranked}
    middle = (len(ranked) - number) // 2
    return {
        "Best captions": ranked[:number],
        "Median captions": ranked[middle : middle + number],
        "Worst captions": ranked[: -number - 1 : -1],
    }


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?\"'()[]`-")
