"""Several runs on one page: what differs, curves on top of one another, sweeps, evaluations, sample pictures."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from fastcap.reporting.figures import Curve, colour, curves, dash, trade_off
from fastcap.reporting.history import Point
from fastcap.reporting.page import data_uri, write_html
from fastcap.reporting.runs import Run, differing, labels, num_jobs

log = logging.getLogger(__name__)

SHOWN = 10  # runs whose curves are visible at first, and whose pictures are in the page
POINTS, COARSE = 120, 40  # of one curve; longer ones are averaged, the noisy expert loads most
SIDE = 1100  # pixels, longest side of a sample picture
_PLOTS = {
    "Quality": ("val/cider", "val/bleu4", "dlag/mae"),
    "Losses": ("val/loss", "train/loss", "train/loss_*"),
    "Routing and speed": ("moe/load_e*", "time/images_per_s"),
    "Further metrics": ("*",),
}
_TITLES = {
    "val/cider": "CIDEr-D",
    "val/bleu4": "BLEU-4",
    "dlag/mae": "error of caption lengths, in tokens",
    "time/images_per_s": "training images a second",
}


def write_runs_page(runs: Sequence[Run], path: Path, title: str = "FastCap runs") -> None:
    """Write the page.

    Args:
        runs: At least one, oldest first.
        path: The HTML file.
        title: Headline.
    """
    base = Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    trained = sorted((run for run in runs if not run.is_evaluation), key=_date, reverse=True)
    names = labels(trained)
    rows = [_row(run, label, style, base) for style, (run, label) in enumerate(zip(trained, names, strict=True))]
    evaluations = [run for run in runs if run.is_evaluation and not run.sweep]
    scored = [row for row in rows if row["cider"] is not None]
    write_html(
        path,
        "runs.html",
        title=title,
        runs=runs,
        rows=rows,
        best=max(scored, key=lambda row: row["cider"], default=None),
        keys=differing(trained),
        sections=_sections(trained, names),
        sweeps=[_sweep(folder, list(jobs)) for folder, jobs in _by_sweep(runs)],
        evaluations=[_row(r, label, 0, base) for r, label in zip(evaluations, labels(evaluations), strict=True)],
        samples=_samples(rows),
        shown=SHOWN,
    )


def thin(points: Sequence[Point], limit: int, by_epoch: bool) -> tuple[list[float], list[float]]:
    """Turn points into x and y, averaged in equal groups where there are more than ``limit``; no number, no point."""
    finite = [p for p in points if math.isfinite(p.value)]
    size = max(1, -(-len(finite) // max(limit, 1)))
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    x = [float(group[-1].epoch + 1 if by_epoch else group[-1].step) for group in groups]
    return x, [float(f"{sum(p.value for p in group) / len(group):.6g}") for group in groups]


def _row(run: Run, label: str, style: int, base: Path) -> dict[str, Any]:
    metrics, best, loss = run.metrics, run.best("val/cider"), run.best("val/loss", highest=False)
    speed = "time/eval_images_per_s" if run.is_evaluation else "time/images_per_s"
    lengths = {"solid": "none", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2"}
    return {
        "run": run,
        "name": os.path.relpath(run.path, base),
        "label": label,
        "style": style,
        "colour": colour(style),
        "dashes": lengths[dash(style)],
        "age": _age(time.time() - run.written),
        "cider": best.value if best else metrics.get("val/cider"),
        "epoch": best.epoch + 1 if best else None,
        "last": run.last("val/cider"),
        "bleu4": metrics.get("val/bleu4", _value(run.best("val/bleu4"))),
        "rouge_l": metrics.get("val/rouge_l", _value(run.best("val/rouge_l"))),
        "loss": _value(loss) if loss else metrics.get("val/loss"),
        "minutes": run.results.get("minutes"),
        "parameters": run.results.get("parameters"),
        "images_per_s": metrics.get(speed, run.last(speed)),
    }


def _sections(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every logged metric's plot, under the first heading that asks for it."""
    waiting = sorted({name for run in runs for name in run.history})
    sections = []
    for heading, patterns in _PLOTS.items():
        plots = []
        for pattern in patterns:
            stem = pattern.removesuffix("*")
            for name in [n for n in waiting if n == pattern or (stem != pattern and n.startswith(stem))]:
                waiting.remove(name)
                by_epoch = not name.startswith(("train/", "moe/"))
                lines = []
                for style, (run, label) in enumerate(zip(runs, names, strict=True)):
                    x, y = thin(run.history.get(name, ()), COARSE if name.startswith("moe/") else POINTS, by_epoch)
                    if x:
                        lines.append(Curve(str(style), label, style, x, y))
                if lines:
                    figure = curves(lines, "epochs" if by_epoch else "steps", falls_far="loss" in name)
                    logarithmic = figure["layout"]["yaxis"].get("type") == "log"
                    title = _TITLES.get(name, "logarithmic scale" if logarithmic else "")
                    plots.append({"name": name, "title": title, "figure": figure})
        sections.append({"heading": heading, "plots": plots})
    return [section for section in sections if section["plots"]]


def _by_sweep(runs: Sequence[Run]) -> Any:
    jobs = [run for run in runs if run.sweep]
    return groupby(sorted(jobs, key=lambda run: str(run.sweep)), key=lambda run: run.sweep)


def _sweep(folder: Path, jobs: list[Run]) -> dict[str, Any]:
    keys = differing(jobs)
    rows = [_row(run, " ".join(f"{k}={run.overrides.get(k, '')}" for k in keys), 0, folder) for run in jobs]
    scored = [row for row in rows if row["cider"] is not None and math.isfinite(row["cider"])]
    best = max(scored, key=lambda row: row["cider"], default=None)
    planned = num_jobs(folder)
    evaluations = all(run.is_evaluation for run in jobs)
    points = [
        {"x": row["images_per_s"], "y": row["cider"], "label": row["label"]} for row in scored if row["images_per_s"]
    ]
    return {
        "folder": folder,
        "keys": keys,
        "rows": rows,
        "best": best,
        "evaluations": evaluations,
        "not_started": max(0, planned - len(jobs)) if planned else 0,
        "unfinished": sum(row["run"].status != "finished" for row in rows),
        "figure": trade_off(points, "images a second", "CIDEr-D") if evaluations and len(points) > 1 else None,
    }


def _date(run: Run) -> str:
    """Folders are named by date; a sweep's jobs by number, below a folder named by date."""
    return run.path.parent.name if run.sweep else run.path.name


def _samples(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for row in rows:
        pictures = []
        for path in row["run"].samples() if len(shown) < SHOWN else ():
            try:
                with Image.open(path) as image:
                    pictures.append({"name": path.name, "uri": data_uri(image, SIDE)})
            except Exception as error:
                log.warning("%s left out: %s", path, error)
        if pictures:
            shown.append({"row": row, "pictures": pictures})
    return shown


def _value(point: Point | None) -> float | None:
    return point.value if point else None


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
