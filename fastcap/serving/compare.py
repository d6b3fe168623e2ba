"""Exported models beside the checkpoint they came from: equal captions, CIDEr, milliseconds, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastcap.serving.captioner import Caption, Captioner

REFERENCE = "checkpoint"


class Photo(NamedTuple):
    """An image to compare on: its id, its pixels, uint8 RGB (S, S, 3), and captions by people, if any."""

    image_id: int
    pixels: np.ndarray
    references: Sequence[str]


def compare(
    captioners: dict[str, Captioner],
    photos: Sequence[Photo],
    metric_options: dict[str, Any],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Caption every photo with every captioner in turn, one at a time.

    Args:
        captioners: By name; ``REFERENCE`` is what the others are compared with.
        photos: The photos.
        metric_options: Options of ``CaptionMetrics``.
        say: Told how many photos are done.

    Returns:
        A row a captioner: what it is, the share of captions equal to the reference's, CIDEr where there are captions
        by people and its loss in per cent, milliseconds an image (medians), bytes.
    """
    captions: dict[str, list[Caption]] = {name: [] for name in captioners}
    for number, photo in enumerate(photos):
        for name, captioner in captioners.items():
            captions[name].append(captioner.caption(photo.pixels))
        if number % 100 == 99:
            say(f"  {number + 1} images")
    rows: list[dict[str, Any]] = []
    scored = all(photo.references for photo in photos)
    truth = [caption.text for caption in captions[REFERENCE]]
    for name, captioner in captioners.items():
        texts = [caption.text for caption in captions[name]]
        row = {
            "variant": name,
            "file_bytes": captioner.info["file_bytes"],
            "images": len(photos),
            "equal_captions": sum(a == b for a, b in zip(texts, truth, strict=True)) / len(photos),
            "ms": round(statistics.median(caption.milliseconds["caption"] for caption in captions[name]), 3),
            "cider": _cider(photos, texts, metric_options) if scored else None,
        }
        before = rows[0]["cider"] if rows else row["cider"]
        row["cider_loss_percent"] = round(100 * (1 - row["cider"] / before), 3) if before else None
        rows.append(row)
    return rows


def preferred(rows: Sequence[dict[str, Any]]) -> str:
    """Name the fastest variant that keeps the checkpoint's captions: by its CIDEr, else by equal captions."""

    def faithful(row: dict[str, Any]) -> bool:
        loss = row["cider_loss_percent"]
        return row["equal_captions"] >= 0.99 if loss is None else loss <= 1.0

    variants = [row for row in rows if row["variant"] != REFERENCE]
    candidates = [row for row in variants if faithful(row)]
    if candidates:
        return str(min(candidates, key=lambda row: row["ms"])["variant"])
    return str(max(variants, key=lambda row: row["equal_captions"])["variant"])


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Lay the comparison out as text, by column."""
    return [
        {
            "variant": row["variant"],
            "MB": f"{row['file_bytes'] / 1e6:.1f}",
            "captions equal": f"{row['equal_captions']:.1%}",
            "CIDEr": "–" if row["cider"] is None else f"{row['cider']:.2f}",
            "CIDEr lost": "–" if row["cider_loss_percent"] is None else f"{row['cider_loss_percent']:.2f} %",
            "ms": f"{row['ms']:.2f}",
        }
        for row in rows
    ]


def _cider(photos: Sequence[Photo], texts: Sequence[str], options: dict[str, Any]) -> float:
    from fastcap.metrics import CaptionMetrics

    references = [photo.references for photo in photos]
    scores = CaptionMetrics(**{**options, "names": ["cider"]}).score([p.image_id for p in photos], texts, references)
    return round(scores.metrics["cider"], 3)
