"""Plots as plotly.js figures: plain dictionaries that the page hands to the library inside it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Figure = dict[str, Any]
# Okabe and Ito's colours, readable with any colour vision, less their yellow; further runs get dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4B4B4B", "#8C510A")
MEAN, MEDIAN = "#D55E00", "#4B4B4B"
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        name: Identifies the run that it belongs to.
        label: What a reader sees.
        style: Position of the run, which settles colour and dash.
        x: Steps or epochs, ascending. (points)
        y: Values. (points)
    """

    name: str
    label: str
    style: int
    x: Sequence[float]
    y: Sequence[float]


def score_histogram(scores: Sequence[float], name: str, bins: int = 30) -> Figure:
    """Draw how a score spreads over images, with its mean and median."""
    counts, edges = np.histogram(scores, bins=bins, range=(0.0, max(max(scores), 1e-6)))
    centres = (edges[:-1] + edges[1:]) / 2
    marks = ((float(np.mean(scores)), MEAN), (float(np.median(scores)), MEDIAN))
    return {
        "data": [
            {
                "type": "bar",
                "x": centres.round(3).tolist(),
                "y": counts.tolist(),
                "width": float(edges[1] - edges[0]) * 0.94,
                "marker": {"color": COLOURS[0]},
                "hovertemplate": f"{name} about %{{x:.0f}}: %{{y}} images<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": f"{name} of one image"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "images"}},
            "shapes": [
                {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": c, "width": 2}}
                for x, c in marks
            ],
        },
    }


def length_histogram(captions: Sequence[int], references: Sequence[int]) -> Figure:
    """Draw the lengths (in words) of captions beside those of their references, each as a share of its kind."""
    words = list(range(min(*captions, *references), max(*captions, *references) + 1))
    data = []
    for name, lengths, colour in (("captions", captions, COLOURS[0]), ("references", references, "#B8BFC7")):
        counts = Counter(lengths)
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": words,
                "y": [round(100 * counts[n] / len(lengths), 3) for n in words],
                "marker": {"color": colour},
                "hovertemplate": f"%{{y:.1f}} % of the {name} have %{{x}} words<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": {
            "barmode": "group",
            "bargap": 0.15,
            "showlegend": True,
            "xaxis": {"title": {"text": "words"}},
            "yaxis": {"title": {"text": "share"}, "ticksuffix": " %"},
        },
    }


def curves(lines: Sequence[Curve], x_title: str, falls_far: bool = False) -> Figure:
    """Overlay one metric of several runs; the page's own legend switches runs by ``meta``.

    Args:
        lines: One for each run that has the metric.
        x_title: What x is.
        falls_far: Draw y on a logarithmic scale where its largest value dwarfs the usual ones, as early losses do.
    """
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines])
    steep = falls_far and values.min() > 0 and values.max() > 8 * np.median(values)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers" if len(line.x) <= 40 else "lines",
                "name": html.escape(line.label),
                "meta": line.name,
                "x": list(line.x),
                "y": list(line.y),
                "line": {"color": colour(line.style), "dash": dash(line.style), "width": 1.8},
                "marker": {"size": 5},
                "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
            }
            for line in lines
        ],
        "layout": {
            "xaxis": {"title": {"text": x_title}, "rangemode": "tozero"},
            "yaxis": {"type": "log"} if steep else {},
            "hovermode": "x unified",
        },
    }


def trade_off(points: Sequence[Mapping[str, Any]], x_title: str, y_title: str) -> Figure:
    """Draw one labelled point for each of several jobs, joined in the order of their x.

    Args:
        points: ``x``, ``y`` and ``label`` of each.
        x_title: What x is.
        y_title: What y is.
    """
    points = sorted(points, key=lambda point: point["x"])
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "x": [point["x"] for point in points],
                "y": [point["y"] for point in points],
                "text": [html.escape(point["label"]) for point in points],
                "textposition": "top right",
                "cliponaxis": False,
                "line": {"color": COLOURS[0], "width": 1.5, "dash": "dot"},
                "marker": {"size": 9},
                "hovertemplate": "%{text}<br>%{x:.4g} · %{y:.4g}<extra></extra>",
            }
        ],
        "layout": {"xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}}},
    }


def colour(style: int) -> str:
    """Colour of the run at a position."""
    return COLOURS[style % len(COLOURS)]


def dash(style: int) -> str:
    """Dash of the run at a position."""
    return DASHES[style // len(COLOURS) % len(DASHES)]
