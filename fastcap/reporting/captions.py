"""Sample images under their captions, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcap.reporting.figure import new_figure, plain, save


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
