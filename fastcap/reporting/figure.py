"""What every picture shares: a figure that needs no display, and how it is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's vermilion and blue: told apart whatever the reader's colour vision.
VERMILION = "#d55e00"
BLUE = "#0072b2"
GREY = "#5f6368"


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Make a white figure of a size in inches."""
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
