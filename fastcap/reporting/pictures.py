"""What every picture shares, and the two small ones: captioned samples, and quality against decoding time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's vermilion and blue: told apart whatever the reader's colour vision.
VERMILION, BLUE, GREY = "#d55e00", "#0072b2", "#5f6368"


@dataclass
class SpeedPoint:
    """One number of refinement steps, measured.

    Attributes:
        num_steps: Decoder passes.
        decode_ms: Milliseconds of decoding an image.
        cider: CIDEr-D, times 100.
        bleu4: BLEU-4, times 100.
    """

    num_steps: int
    decode_ms: float
    cider: float
    bleu4: float


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make a white figure of a size in inches, which needs no display."""
    figure = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics."""
    return text.replace("$", r"\$")


def draw_captions(
    path: Path,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: int = 4,
) -> None:
    """Draw images in rows, each with its caption above and its first two references below.

    Args:
        path: The PNG file to write.
        images: Pixels, uint8, RGB. (H, W, 3) each
        captions: One for each image.
        references: Reference captions of each image.
        columns: Images a row.
    """
    rows = -(-len(images) // columns)
    figure = new_figure(3.2 * columns, 4.3 * rows, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, image, caption, texts in zip(axes, images, captions, references, strict=False):
        axis.imshow(image)
        axis.set_title(plain("\n".join(textwrap.wrap(caption or "(empty)", 34))), fontsize=10, weight="bold")
        lines = [line for text in texts[:2] for line in textwrap.wrap(f"· {text}", 44)]
        axis.text(0.5, -0.02, plain("\n".join(lines)), transform=axis.transAxes, ha="center", va="top", fontsize=7)
    save(figure, path, dpi=80)


def draw_curve(path: Path, points: Sequence[SpeedPoint], chosen: int, note: str) -> None:
    """Draw CIDEr against decoding time, a point for each number of steps.

    Args:
        path: The PNG file to write.
        points: At least one.
        chosen: The number of steps that the run itself uses, marked where it is among the points.
        note: How it was measured, written small below.
    """
    figure = new_figure(5.8, 4.2, layout="constrained")
    axis = figure.subplots()
    points = sorted(points, key=lambda point: point.decode_ms)
    times, scores = [p.decode_ms for p in points], [p.cider for p in points]
    axis.plot(times, scores, color=BLUE, marker="o")
    for point, following in zip(points, [*scores[1:], scores[-1]], strict=True):
        own = point.num_steps == chosen
        if own:
            axis.plot(point.decode_ms, point.cider, "o", markersize=13, fillstyle="none", color=VERMILION, mew=2)
        label = f"{point.num_steps} step{'s' * (point.num_steps > 1)}" + " (this run)" * own
        # On the side that the curve leaves free.
        offset = (9, -14 if following >= point.cider else 9)
        axis.annotate(label, (point.decode_ms, point.cider), xytext=offset, textcoords="offset points", fontsize=9)
    axis.set(xlabel="decoding time, ms an image", ylabel="CIDEr-D × 100", xlim=(0, 1.32 * max(times)))
    axis.set_title("Quality against speed, by refinement steps", fontsize=11)
    axis.margins(y=0.16)
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=7.5, color=GREY)
    save(figure, path, dpi=110)
