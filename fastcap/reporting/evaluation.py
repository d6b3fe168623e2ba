"""The page of an evaluation: its scores, its faults, and captions to look at, all inside one HTML file."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import fastcap
from fastcap.metrics import caption_faults
from fastcap.reporting.pictures import BLUE, GREY, VERMILION, new_figure
from fastcap.utils.files import write_rows, write_text

log = logging.getLogger(__name__)

SIDE = 320  # pixels, longest side of a picture
SHOWN = 9  # captions a section
NAMES = {
    "cider": "CIDEr-D",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
}
_FAULTS = ("distinct", "repetitions")  # which the page counts itself
_MAIN = ("cider", "bleu4", "rouge_l", "meteor")

Picture = Callable[[int], np.ndarray]


@dataclass
class ScoredCaption:
    """One image's caption with its scores."""

    image_id: int
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]  # bleu4, rouge_l and cider, times 100
    file_name: str = ""  # where known
    confidence: float | None = None  # geometric mean of the tokens' probabilities, where known

    @property
    def length(self) -> int:
        """Words of the caption, split at white space."""
        return len(self.caption.split())

    @property
    def words(self) -> list[tuple[str, bool]]:
        """Each word of the caption, and whether some reference has it."""
        known = {_bare(word) for text in self.references for word in text.split()}
        return [(word, _bare(word) in known) for word in self.caption.split()]


@dataclass
class Evaluation:
    """Everything that the page says."""

    title: str
    subtitle: str  # what was scored, in one line
    metrics: Mapping[str, float]  # of the whole set, by plain name (cider), times 100 where it is a score
    captions: Sequence[ScoredCaption]  # every image's
    tokenizer: str  # that the scores come from
    speed: Mapping[str, Any]  # from pixels in memory to token ids: images_per_s, batch_size, threads, device
    settings: Mapping[str, Any]  # lines of the settings table
    config: str  # the whole configuration as text


def write_page(evaluation: Evaluation, path: Path, picture: Picture) -> bool:
    """Write the page and return whether there is one: that it cannot be made is a warning, never an evaluation's end.

    Args:
        evaluation: What it says.
        path: The HTML file.
        picture: RGB pixels, uint8 (H, W, 3), of an image id; only shown images are asked for.
    """
    try:
        # Text is escaped, a missing value an error.
        folder = FileSystemLoader(Path(__file__).parent / "templates")
        template = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        html = template.get_template("evaluation.html").render(
            version=fastcap.__version__,
            made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            **_page(evaluation, picture),
        )
        write_text(path, html.encode("utf-8", "replace").decode())
    except Exception as error:
        log.warning("%s left out: %s: %s", path.name, type(error).__name__, error)
        return False
    return True


def _page(evaluation: Evaluation, picture: Picture) -> dict[str, Any]:
    captions = evaluation.captions
    failures: list[str] = []

    def card(row: ScoredCaption) -> dict[str, Any]:
        uri = None
        try:
            uri = data_uri(picture(row.image_id), SIDE)
        except Exception as error:
            failures.append(str(error))
        return {"row": row, "picture": uri}

    sections = {title: [card(row) for row in rows] for title, rows in choose(captions).items()}
    if failures:
        log.warning("%d pictures left out of the report (first: %s)", len(failures), failures[0])
    reference_lengths = [len(text.split()) for row in captions for text in row.references]
    main = [name for name in _MAIN if name in evaluation.metrics]
    return {
        "evaluation": evaluation,
        "names": NAMES,
        "main": main,
        "others": {k: v for k, v in sorted(evaluation.metrics.items()) if k not in (*main, *_FAULTS)},
        "sections": sections,
        "histograms": _histograms(captions, reference_lengths),
        "faults": caption_faults([row.caption for row in captions]),
        "empty": sum(row.length == 0 for row in captions),
        "reference_length": float(np.mean(reference_lengths)),
        "num_references": len(reference_lengths),
    }


def write_scores(captions: Sequence[ScoredCaption], path: Path) -> None:
    """Write one CSV row an image; scores are times 100, lengths in words."""
    rows = [
        {
            "image_id": row.image_id,
            "file_name": row.file_name,
            "caption": row.caption,
            **{name: f"{row.scores[name]:.4f}" for name in ("bleu4", "rouge_l", "cider")},
            "length": row.length,
            "confidence": "" if row.confidence is None else f"{row.confidence:.4f}",
        }
        for row in captions
    ]
    write_rows(path, rows)


def choose(captions: Sequence[ScoredCaption], number: int = SHOWN) -> dict[str, list[ScoredCaption]]:
    """Pick the best, the median and the worst captions by CIDEr-D, ``number`` of each; no image is picked twice.

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


def data_uri(pixels: np.ndarray, side: int) -> str:
    """Encode a picture, uint8, RGB (H, W, 3), as a JPEG data URI, shrunk so that no side is longer than ``side``."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _histograms(captions: Sequence[ScoredCaption], reference_lengths: Sequence[int]) -> str:
    """Draw how CIDEr-D spreads over images, and lengths beside those of the references, as an SVG data URI."""
    figure = new_figure(12, 3.2, layout="constrained")
    left, right = figure.subplots(1, 2)
    scores = [row.scores["cider"] for row in captions]
    left.hist(scores, bins=30, range=(0, max(max(scores), 1e-6)), color=BLUE, rwidth=0.94)
    for name, value, colour in (("mean", np.mean(scores), VERMILION), ("median", np.median(scores), "black")):
        left.axvline(float(value), color=colour, label=f"{name} {value:.1f}")
    left.set(title="CIDEr-D of each image", xlabel="CIDEr-D × 100", ylabel="images")
    lengths = [row.length for row in captions]
    bins = np.arange(min(*lengths, *reference_lengths), max(*lengths, *reference_lengths) + 2) - 0.5
    shares = [np.full(len(values), 100 / len(values)) for values in (lengths, reference_lengths)]
    labels = ["captions", "references"]
    right.hist([lengths, reference_lengths], bins, weights=shares, color=[BLUE, "#b8bfc7"], label=labels)
    right.set(title="Length of captions and of references", xlabel="words", ylabel="%")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=GREY)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
