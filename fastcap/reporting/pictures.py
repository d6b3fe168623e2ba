"""Pictures: captioned samples, and a caption's refinement step by step."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fastcap.types import RefinementStep
from fastcap.utils.files import atomic_write, write_rows

Steps = Sequence[RefinementStep]

# Okabe and Ito's vermilion and blue: told apart whatever the reader's colour vision.
VERMILION, BLUE, GREY = "#d55e00", "#0072b2", "#5f6368"
# Perceptually even, and the same to readers with red-green blindness.
COLOURS = colormaps["cividis"]
_CHARACTER, _GAP, _ROW, _NARROWEST, _WIDEST = 0.088, 0.3, 0.46, 4.4, 15.0  # inches


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make a white figure of a size in inches, which needs no display."""
    figure = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure as PNG, making its folder."""
    with atomic_write(path) as part:
        figure.savefig(part, dpi=dpi, format="png")


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
    bare = {"frame_on": False, "xticks": [], "yticks": []}  # ticks that axis("off") hides are measured all the same
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw=bare).flatten()
    for axis, image, caption, texts in zip(axes, images, captions, references, strict=False):
        axis.imshow(image)
        axis.set_title(plain("\n".join(textwrap.wrap(caption or "(empty)", 34))), fontsize=10, weight="bold")
        lines = [line for text in texts[:2] for line in textwrap.wrap(f"· {text}", 44)]
        axis.text(0.5, -0.02, plain("\n".join(lines)), transform=axis.transAxes, ha="center", va="top", fontsize=7)
    save(figure, path, dpi=80)


def draw_refinement(
    path: Path,
    image: np.ndarray,
    caption: str,
    steps: Steps,
    expert_weights: Sequence[float] = (),
    reference: str = "",
) -> None:
    """Draw one image's refinement as a PNG, a row of words for each step.

    A word's box is coloured by the probability with which it was written, bold where this step wrote it; a word that
    the step masked again has a dashed frame.

    Args:
        path: The file to write.
        image: Pixels, uint8, RGB. (H, W, 3)
        caption: What refinement settled on.
        steps: At least one. Words shrink where they take more than ``_WIDEST``.
        expert_weights: Weight of each expert, summing to one; empty where the decoder has none.
        reference: A caption by a person, where one is known.
    """
    columns = zip(*(step.words for step in steps), strict=True)
    widths = np.array([_CHARACTER * max(map(len, column)) + _GAP for column in columns])  # inches at full size
    shrink = min(1.0, _WIDEST / widths.sum())
    wide, tall = max(shrink * widths.sum(), _NARROWEST), max(_ROW * len(steps), 2.6)
    figure = new_figure(wide + 4.6, tall + 1.5, layout="constrained")
    photo, words = figure.subplots(1, 2, width_ratios=[2.6, wide + 0.8])
    photo.imshow(image)
    photo.axis("off")
    words.axis("off")
    words.set(xlim=(-0.8, wide), ylim=(tall, 0))
    for row, step in enumerate(steps):
        y = (row + 0.5) * _ROW
        words.text(-0.75, y, f"step {row + 1}", va="center", fontsize=9, color=GREY)
        for at, x in enumerate(shrink * (widths.cumsum() - widths / 2)):
            colour, written = COLOURS(step.confidence[at]), not row or steps[row - 1].remasked[at]
            frame = {"linewidth": 2 * step.remasked[at], "edgecolor": VERMILION, "linestyle": "--"}
            words.text(
                x,
                y,
                plain(step.words[at]),
                ha="center",
                va="center",
                fontsize=10 * shrink,
                color="white" if np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) < 0.45 else "black",
                weight="bold" if written else "normal",
                bbox={"boxstyle": "round", "facecolor": colour, **frame},
            )
    figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), ax=words, label="confidence", shrink=0.8)
    letters = int(9 * (wide + 4.6))
    figure.suptitle(plain(textwrap.fill(caption or "(empty)", letters)), x=0.02, ha="left", weight="bold")
    key = ["dashed: masked again after this step; bold: written in this step"]
    if expert_weights:
        key.append("expert weights: " + ", ".join(f"{weight:.2f}" for weight in expert_weights))
    if reference:
        key.insert(0, textwrap.fill(f"reference: {reference}", letters))
    figure.supxlabel(plain("\n".join(key)), x=0.02, ha="left", fontsize=9, color=GREY)
    save(figure, path, dpi=110)


def write_steps(path: Path, steps: Mapping[str, Steps]) -> None:
    """Write every word of every step as CSV, steps and positions counted from 1.

    Args:
        path: The file.
        steps: Of each image, by its id.
    """
    rows = [
        dict(image_id=name, step=number, position=at, token=word, confidence=round(p, 4), remasked=int(masked))
        for name, own in steps.items()
        for number, step in enumerate(own, start=1)
        for at, (word, p, masked) in enumerate(zip(step.words, step.confidence, step.remasked, strict=True), start=1)
    ]
    write_rows(path, rows)
