"""Exported models beside the checkpoint they came from: equal captions, CIDEr, milliseconds, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcap.serving.captioner import Caption, Captioner

REFERENCE = "checkpoint"
COLUMNS = ("variant", "MB", "captions equal", "CIDEr", "CIDEr lost", "ms")


@dataclass
class Photo:
    """An image to compare on.

    Attributes:
        image_id: Its id.
        pixels: uint8, RGB. (S, S, 3)
        references: Captions by people; none where nobody wrote any.
    """

    image_id: int
    pixels: np.ndarray
    references: Sequence[str]


def compare(
    captioners: dict[str, Captioner],
    photos: Sequence[Photo],
    metric_options: dict[str, Any],
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Caption every photo with every captioner in turn, one at a time.

    Args:
        captioners: By name; ``REFERENCE`` is what the others are compared with.
        photos: The photos.
        metric_options: Options of ``CaptionMetrics``.
        progress: Called with the number of photos done.

    Returns:
        A row a captioner: what it is, the share of captions equal to the reference's, CIDEr where there are captions
        by people and its loss in per cent, milliseconds an image (medians), bytes.
    """
    captions: dict[str, list[Caption]] = {name: [] for name in captioners}
    for number, photo in enumerate(photos):
        for name, captioner in captioners.items():
            captions[name].append(captioner.caption(photo.pixels))
        progress(number + 1)
    rows: list[dict[str, Any]] = []
    scored = all(photo.references for photo in photos)
    for name, captioner in captioners.items():
        texts = [caption.text for caption in captions[name]]
        truth = [caption.text for caption in captions[REFERENCE]]
        info = captioner.info
        row = {
            "variant": name,
            "runtime": info["kind"],
            "precision": info["precision"],
            "file_bytes": info["file_bytes"],
            "images": len(photos),
            "equal_captions": sum(a == b for a, b in zip(texts, truth, strict=True)) / len(photos),
            "ms": round(statistics.median(caption.milliseconds["caption"] for caption in captions[name]), 3),
            "cider": _cider(photos, texts, metric_options) if scored else None,
        }
        before = rows[0]["cider"] if rows else row["cider"]
        row["cider_loss_percent"] = round(100 * (1 - row["cider"] / before), 3) if before else None
        rows.append(row)
    return rows


def preferred(rows: Sequence[dict[str, Any]], max_loss_percent: float = 1.0, min_equal: float = 0.99) -> str:
    """Name the fastest variant that keeps the checkpoint's captions: by its CIDEr, else by equal captions."""

    def faithful(row: dict[str, Any]) -> bool:
        loss = row["cider_loss_percent"]
        return row["equal_captions"] >= min_equal if loss is None else loss <= max_loss_percent

    variants = [row for row in rows if row["variant"] != REFERENCE]
    candidates = [row for row in variants if faithful(row)]
    if candidates:
        return str(min(candidates, key=lambda row: row["ms"])["variant"])
    return str(max(variants, key=lambda row: row["equal_captions"])["variant"])


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lay the comparison out as text, a tuple a row, in the order of ``COLUMNS``."""
    return [
        (
            row["variant"],
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['equal_captions']:.1%}",
            "-" if row["cider"] is None else f"{row['cider']:.2f}",
            "-" if row["cider_loss_percent"] is None else f"{row['cider_loss_percent']:.2f} %",
            f"{row['ms']:.2f}",
        )
        for row in rows
    ]


def _cider(photos: Sequence[Photo], texts: Sequence[str], options: dict[str, Any]) -> float:
    from fastcap.metrics import CaptionMetrics

    references = [photo.references for photo in photos]
    scores = CaptionMetrics(**{**options, "names": ["cider"]}).score([p.image_id for p in photos], texts, references)
    return round(scores.metrics["cider"], 3)
