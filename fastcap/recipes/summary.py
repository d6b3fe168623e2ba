"""What a recipe came to: quality beside decoding time, as a table, a CSV file and ``results.json``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastcap.jobs.jobs import write_json
from fastcap.recipes.plan import JOBS, Stage
from fastcap.reporting.results_table import SCORES

SETTINGS = ("num_steps", "num_lengths", "num_beams")
COLUMNS = ("stage", "split", *SETTINGS, *SCORES, "decode_ms")
_TITLES = {
    "stage": "stage",
    "split": "split",
    "num_steps": "steps",
    "num_lengths": "lengths",
    "num_beams": "beams",
    "cider": "CIDEr-D",
    "bleu4": "BLEU-4",
    "distinct": "distinct",
    "repetitions": "repeated",
    "unseen_bigrams": "unseen",
    "decode_ms": "ms",
}


def summarise(stages: Sequence[Stage], run: Path, minutes: float) -> dict[str, float]:
    """Print the table and write ``recipe.csv`` and ``results.json``.

    Evaluations whose decoding a stage timed at batch 1 get the median in their own ``results.json`` as ``decode_ms``.

    Args:
        stages: All finished.
        run: The recipe's folder.
        minutes: What all processes took.

    Returns:
        The metrics of the last training.
    """
    times = _decoding_times(run / stage.folder for stage in stages if stage.job == "bench decoding")
    rows = []
    for stage in stages:
        if stage.job == "eval":
            rows.append(_row(stage, run / stage.folder / JOBS["eval"].output, times))
    with open(run / "recipe.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    trained = [stage for stage in stages if stage.job == "train"]
    last: dict[str, Any] = _read(run / trained[-1].folder / JOBS["train"].output) if trained else {}
    results = {key: value for key, value in last.items() if key not in ("epochs", "steps", "resumed")}
    write_json(run / "results.json", results | {"minutes": minutes, "stages": [stage.folder for stage in stages]})
    _print(
        [row for row in rows if row["split"] != "train"],
        f"{run}: {minutes:.1f} minutes; ms of decoding alone, batch 1",
    )
    return {name: float(value) for name, value in last.get("metrics", {}).items()}


def _row(stage: Stage, path: Path, times: dict[tuple[str, ...], float]) -> dict[str, Any]:
    results = _read(path)
    split, refinement = results["split"], results["refinement"]
    settings = {name: str(refinement.get(name, "")) for name in SETTINGS}
    time = times.get((str(Path(results["ckpt"]).resolve()), *settings.values()))
    if time is not None and results.get("decode_ms") != time:
        write_json(path, results | {"decode_ms": time})
    scores = {name: results["metrics"].get(f"{split}/{name}") for name in SCORES}
    return {"stage": stage.name, "split": split, **settings, **scores, "decode_ms": time}


def _decoding_times(folders: Iterable[Path]) -> dict[tuple[str, ...], float]:
    """Median milliseconds by checkpoint and settings, of ``bench decoding``'s tables."""
    found = {}
    for folder in folders:
        with open(folder / JOBS["bench decoding"].output, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = (str(Path(row["checkpoint"]).resolve()), *(row[name] for name in SETTINGS))
                found[key] = float(row["decode_ms"])
    return found


def _print(rows: Sequence[dict[str, Any]], title: str) -> None:
    names = list(COLUMNS)
    if len({row["split"] for row in rows}) == 1:
        names.remove("split")
        title += f"; {rows[0]['split']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(
            _TITLES[name], justify="left" if name in ("stage", "split") else "right", no_wrap=name == "stage"
        )
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    if rows:
        Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
