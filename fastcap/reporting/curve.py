"""Quality against decoding time, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcap.reporting.figure import BLUE, GREY, VERMILION, new_figure, save


@dataclass
class SpeedPoint:
    """One setting of refinement, measured.

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


def draw_curve(path: Path, points: Sequence[SpeedPoint], chosen: int, note: str) -> None:
    """Draw CIDEr against decoding time, a point for each number of steps.

    Args:
        path: The PNG file to write.
        points: What was measured.
        chosen: The number of steps that the run itself uses, marked where it is among the points.
        note: How it was measured, written small below.
    """
    figure = new_figure(5.8, 4.2, layout="constrained")
    axis = figure.subplots()
    points = sorted(points, key=lambda point: point.decode_ms)
    times, scores = [p.decode_ms for p in points], [p.cider for p in points]
    axis.plot(times, scores, color=BLUE, marker="o", markersize=6, linewidth=1.6)
    for point, following in zip(points, [*scores[1:], scores[-1]], strict=True):
        own = point.num_steps == chosen
        if own:
            axis.plot(point.decode_ms, point.cider, "o", markersize=13, fillstyle="none", color=VERMILION, mew=2)
        label = f"{point.num_steps} step{'s' if point.num_steps > 1 else ''}" + (" (this run)" if own else "")
        axis.annotate(
            label,
            (point.decode_ms, point.cider),
            xytext=(9, -14 if following >= point.cider else 9),  # on the side that the curve leaves free
            textcoords="offset points",
            fontsize=9,
        )
    axis.set_xlim(0, 1.32 * max(times))
    axis.margins(y=0.16)
    axis.set_xlabel("decoding time, ms an image")
    axis.set_ylabel("CIDEr-D × 100")
    axis.set_title("Quality against speed, by refinement steps", fontsize=11)
    axis.grid(color="#e6e6e6")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.supxlabel(note, fontsize=7.5, color=GREY)
    save(figure, path, dpi=110)
