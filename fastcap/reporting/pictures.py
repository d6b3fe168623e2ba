"""Pictures: captioned samples, a caption's refinement step by step, and quality against decoding time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke

from fastcap.types import RefinementStep
from fastcap.utils.files import write_rows

Steps = Sequence[RefinementStep]

# Okabe and Ito's vermilion and blue: told apart whatever the reader's colour vision.
VERMILION, BLUE, GREY = "#d55e00", "#0072b2", "#5f6368"
# Perceptually even, and the same to readers with red-green blindness.
COLOURS = colormaps["cividis"]
_CHARACTER, _PADDING, _GAP = 0.088, 0.2, 0.07  # inches at the words' size
_ROW, _BOX, _WORD_SIZE = 0.46, 0.31, 10.0
_LONGEST_LINE = 10.2  # inches


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


def draw_curve(path: Path, points: Sequence[Mapping[str, float]], chosen: int, note: str) -> None:
    """Draw CIDEr against decoding time, a point for each number of steps.

    Args:
        path: The PNG file to write.
        points: At least one, with ``num_steps``, ``decode_ms`` (an image) and ``cider``.
        chosen: The number of steps that the run itself uses, marked where it is among the points.
        note: How it was measured, written small below.
    """
    figure = new_figure(5.8, 4.2, layout="constrained")
    axis = figure.subplots()
    points = sorted(points, key=lambda point: point["decode_ms"])
    times, scores = [p["decode_ms"] for p in points], [p["cider"] for p in points]
    axis.plot(times, scores, color=BLUE, marker="o")
    for point, following in zip(points, [*scores[1:], scores[-1]], strict=True):
        steps, at = point["num_steps"], (point["decode_ms"], point["cider"])
        own = steps == chosen
        if own:
            axis.plot(*at, "o", markersize=13, fillstyle="none", color=VERMILION, mew=2)
        label = f"{steps} step{'s' * (steps > 1)}" + " (this run)" * own
        # On the side that the curve leaves free.
        offset = (9, -14 if following >= at[1] else 9)
        axis.annotate(label, at, xytext=offset, textcoords="offset points", fontsize=9)
    axis.set(xlabel="decoding time, ms an image", ylabel="CIDEr-D × 100", xlim=(0, 1.32 * max(times)))
    axis.set_title("Quality against speed, by refinement steps", fontsize=11)
    axis.margins(y=0.16)
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=7.5, color=GREY)
    save(figure, path, dpi=110)


def draw_refinement(
    path: Path,
    image: np.ndarray,
    caption: str,
    steps: Steps,
    expert_weights: Sequence[float] = (),
    reference: str = "",
) -> None:
    """Draw one image's refinement as a PNG.

    A word's box is coloured by the probability with which it was written, bold where this step wrote it; a word that
    the step masked again is struck out in a dashed frame.

    Args:
        path: The file to write.
        image: Pixels, uint8, RGB. (H, W, 3)
        caption: What refinement settled on.
        steps: At least one. Captions longer than a line go on in a second block of rows.
        expert_weights: Weight of each expert, summing to one; empty where the decoder has none.
        reference: A caption by a person, where one is known.
    """
    blocks = _blocks(steps)
    text = max([4.4, *(sum(_widths(steps, block)) for block in blocks)])
    photo, experts, margin = 2.6, 1.35 if expert_weights else 0.0, 0.25
    left, right = photo + 2 * margin + 0.62, 1.0 + experts
    width = left + text + right
    title = textwrap.wrap(caption or "(empty)", max(int((left + text) / 0.12), 30))
    told = textwrap.wrap(f"reference: {reference}", int((left + text) / 0.085)) if reference else []
    top, bottom = 0.3 + 0.25 * len(title) + 0.2 * len(told), 0.4
    rows = len(blocks) * (len(steps) * _ROW + 0.2)
    height = top + max(photo, rows) + bottom
    figure = new_figure(width, height)

    figure.text(margin / width, 1 - 0.12 / height, plain("\n".join(title)), va="top", fontsize=13, weight="bold")
    below = 1 - (0.17 + 0.25 * len(title)) / height
    figure.text(margin / width, below, plain("\n".join(told)), va="top", fontsize=9.5, color=GREY)

    axis = _axes(figure, margin, bottom + max(photo, rows) - photo, photo, photo)
    axis.imshow(image)
    axis.axis("off")
    words = _axes(figure, left, bottom + max(photo, rows) - rows, text, rows)
    words.set(xlim=(0, text), ylim=(rows, 0))
    words.axis("off")
    for number, block in enumerate(blocks):
        _draw_block(words, steps, block, number * (len(steps) * _ROW + 0.2))
    key = "dashed: masked again after this step; bold: written in this step"
    figure.text(left / width, 0.15 / height, key, fontsize=8.5, color=GREY)
    bar = _axes(figure, left + text + 0.2, bottom + max(photo, rows) - min(rows, 2.2), 0.13, min(rows, 2.2) - 0.1)
    figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), cax=bar, ticks=[0, 0.5, 1])
    bar.tick_params(labelsize=8)
    bar.set_title("confidence", fontsize=8, loc="left", pad=5)
    if expert_weights:
        _draw_experts(figure, expert_weights, left + text + 1.15, bottom + max(photo, rows) - 0.1)
    save(figure, path, dpi=110)


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Place axes by inches from the lower left corner."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes((x / whole_width, y / whole_height, width / whole_width, height / whole_height))


def _widths(steps: Steps, positions: list[int]) -> list[float]:
    """Width of each position's column, in inches: that of its longest word in any step."""
    longest = [max(len(step.words[at]) for step in steps) for at in positions]
    return [_CHARACTER * max(n, 2) + _PADDING + _GAP for n in longest]


def _blocks(steps: Steps) -> list[list[int]]:
    """Break the caption's positions into lines that fit."""
    positions = list(range(len(steps[0].words)))
    total = sum(_widths(steps, positions))
    # Lines of about one length rather than a full line and a rest.
    share = total / math.ceil(total / _LONGEST_LINE)
    blocks: list[list[int]] = [[]]
    for position in positions:
        if blocks[-1] and sum(_widths(steps, blocks[-1])) >= share - 1e-6:
            blocks.append([])
        blocks[-1].append(position)
    return blocks


def _draw_block(axis: Axes, steps: Steps, positions: list[int], top: float) -> None:
    for number, step in enumerate(steps):
        y = top + number * _ROW + 0.02
        axis.text(-0.12, y + _BOX / 2, f"step {number + 1}", ha="right", va="center", fontsize=9, color=GREY)
        x = 0.0
        for position, width in zip(positions, _widths(steps, positions), strict=True):
            written = number == 0 or steps[number - 1].remasked[position]
            _draw_word(axis, step, position, written, x, y, width - _GAP)
            x += width


def _draw_word(
    axis: Axes, step: RefinementStep, position: int, written: bool, x: float, y: float, width: float
) -> None:
    confidence, remasked = step.confidence[position], step.remasked[position]
    colour = COLOURS(confidence)
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    ink = "white" if luminance < 0.45 else "black"
    frame = {"edgecolor": VERMILION, "linewidth": 2.2, "linestyle": (0, (3, 1.4))} if remasked else {"linewidth": 0}
    axis.add_patch(
        FancyBboxPatch(
            (x, y), width, _BOX, boxstyle="round,pad=0,rounding_size=0.05", facecolor=colour, clip_on=False, **frame
        )
    )
    if remasked:
        axis.plot([x + 0.04, x + width - 0.04], [y + _BOX / 2] * 2, color=VERMILION, linewidth=1.6, zorder=2)
    axis.text(
        x + width / 2,
        y + _BOX / 2,
        plain(step.words[position]),
        ha="center",
        va="center_baseline",
        fontsize=_WORD_SIZE,
        color=ink,
        weight="bold" if written else "normal",
        path_effects=[withStroke(linewidth=2.5, foreground=colour)],  # keeps a struck word readable
    )


def _draw_experts(figure: Figure, weights: Sequence[float], x: float, top: float) -> None:
    tall = min(0.24 * len(weights) + 0.02, 2.4)
    axis = _axes(figure, x, top - tall, 0.85, tall)
    bars = axis.barh(range(len(weights)), weights, color=BLUE, height=0.62)
    axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7.5, color=GREY)
    axis.set(xlim=(0, 1.3), ylim=(len(weights) - 0.5, -0.5), xticks=[])
    axis.set_yticks(range(len(weights)), [f"e{number}" for number in range(len(weights))], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_title("expert weights", fontsize=8, loc="left", pad=5)


def write_steps(path: Path, steps: Mapping[str, Steps]) -> None:
    """Write every word of every step as CSV, steps and positions counted from 1.

    Args:
        path: The file.
        steps: Of each image, by its id.
    """
    columns = ("image_id", "step", "position", "token", "confidence", "remasked")
    rows = [
        dict(zip(columns, (name, number, position, word, round(confidence, 4), int(remasked)), strict=True))
        for name, own in steps.items()
        for number, step in enumerate(own, start=1)
        for position, (word, confidence, remasked) in enumerate(
            zip(step.words, step.confidence, step.remasked, strict=True), start=1
        )
    ]
    write_rows(path, rows, columns)
