"""What an evaluation leaves behind: a table with every image's scores, and a page with captions to look at."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.metrics import CaptionMetrics, caption_faults
from fastcap.report.figures import MEAN, MEDIAN, length_histogram, score_histogram
from fastcap.report.page import data_uri, write_html

log = logging.getLogger(__name__)

SHOWN = 9  # captions a section
SIDE = 320  # pixels, longest side of a picture
NAMES = {
    "cider": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
}
_MAIN = ("cider", "bleu4", "rouge_l", "meteor", "spice")

Picture = Callable[[int], np.ndarray | None]


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


@dataclass(frozen=True)
class Speed:
    """How fast captions were generated, from pixels in memory to token ids.

    Attributes:
        images_per_s: Images a second.
        batch_size: Images a batch.
        threads: Threads of one operation.
        device: Such as "cpu".
    """

    images_per_s: float
    batch_size: int
    threads: int
    device: str = "cpu"

    @property
    def ms_an_image(self) -> float:
        """Milliseconds for one image, as a batch's share."""
        return 1000 / self.images_per_s


@dataclass
class Evaluation:
    """Everything that the page says.

    Attributes:
        title: Headline.
        subtitle: What was scored, in one line.
        metrics: Of the whole set, by plain name (``cider``), times 100 where it is a score.
        captions: Every image.
        tokenizer: The tokenizer that the scores come from.
        speed: Where captions were generated just now.
        settings: Lines of the settings table.
        config: The whole configuration as text, "" where there is none.
    """

    title: str
    subtitle: str
    metrics: Mapping[str, float]
    captions: Sequence[ScoredCaption]
    tokenizer: str
    speed: Speed | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""


def score_captions(
    image_ids: Sequence[int],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    metric: CaptionMetrics,
    file_names: Sequence[str] | None = None,
    confidences: Sequence[float] | None = None,
) -> list[ScoredCaption]:
    """Score each image by itself, in this process alone.

    Args:
        image_ids: Ids, each once. (N)
        captions: One for each. (N)
        references: At least one for each. (N)
        metric: An empty metric with ``sync_on_compute=False``; holds the captions afterwards.
        file_names: Image files, where known. (N)
        confidences: Of the captions, in [0, 1]. (N)
    """
    metric.update(image_ids, captions, references)
    scores = metric.compute_per_image()
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


def write_page(evaluation: Evaluation, path: Path, picture: Picture | None = None) -> bool:
    """Write the page; one that cannot be made is a warning, never the end of an evaluation.

    Args:
        evaluation: What it says.
        path: The HTML file.
        picture: RGB pixels, uint8 (H, W, 3), of an image id, or None; only shown images are asked for.

    Returns:
        Whether there is a page now.
    """
    try:
        values = _page(evaluation, picture)
        write_html(path, "evaluation.html", **values)
    except Exception as error:
        log.warning("%s left out: %s: %s", path.name, type(error).__name__, error)
        return False
    return True


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


def _page(evaluation: Evaluation, picture: Picture | None) -> dict[str, Any]:
    captions = evaluation.captions
    failures: list[str] = []

    def card(row: ScoredCaption) -> dict[str, Any]:
        uri = None
        try:
            pixels = picture(row.image_id) if picture else None
            uri = None if pixels is None else data_uri(pixels, SIDE)
        except Exception as error:
            failures.append(str(error))
        return {"row": row, "picture": uri}

    sections = {title: [card(row) for row in rows] for title, rows in choose(captions).items()}
    if failures:
        log.warning("%d pictures left out of the report (first: %s)", len(failures), failures[0])
    scores = [row.scores["cider"] for row in captions]
    lengths = [row.length for row in captions]
    reference_lengths = [len(text.split()) for row in captions for text in row.references]
    main = [name for name in _MAIN if name in evaluation.metrics]
    return {
        "evaluation": evaluation,
        "names": NAMES,
        "main": main,
        "others": {k: v for k, v in sorted(evaluation.metrics.items()) if k not in main},
        "sections": sections,
        "cider_figure": score_histogram(scores, "CIDEr-D"),
        "cider_marks": (("mean", float(np.mean(scores)), MEAN), ("median", float(np.median(scores)), MEDIAN)),
        "length_figure": length_histogram(lengths, reference_lengths),
        "faults": _faults(captions),
        "reference_length": float(np.mean(reference_lengths)),
        "num_references": len(reference_lengths),
    }


def _faults(captions: Sequence[ScoredCaption]) -> dict[str, Any]:
    texts = [row.caption for row in captions]
    common, times = Counter(texts).most_common(1)[0]
    return {
        **caption_faults(texts),
        "empty": sum(row.length == 0 for row in captions),
        "common": common,
        "times": times,
        "stutters": [
            row for row in captions if any(a == b for a, b in pairwise(map(str.casefold, row.caption.split())))
        ][:6],
    }


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?\"'()[]`-")
