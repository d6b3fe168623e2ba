"""What a sweep leaves behind: a table, and an exit status that names the jobs that failed."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastcap.reporting.runs import Run, differing, find_runs

log = logging.getLogger(__name__)

COLUMNS = {"val/cider": "CIDEr-D", "val/bleu4": "BLEU-4", "val/loss": "val/loss"}


class SweepSummary(Callback):
    """Hydra's callback around a sweep: a table, and ``sweep.csv`` in its folder at the end.

    It ends the process with status 1 and the jobs' names when jobs failed.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``multirun.yaml``, which job folders are named by; not every sweeper does."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum the sweep up."""
        folder = Path(config.hydra.sweep.dir)
        failed = summarise(folder)
        for name, error in failed.items():
            print(f"fastcap: error: {folder / name}: {error.splitlines()[0]}", file=sys.stderr)
        if failed:
            message = f"fastcap: error: {len(failed)} failed: {', '.join(failed)}; the same command tries again"
            print(message, file=sys.stderr)
            sys.exit(1)


def summarise(folder: Path) -> dict[str, str]:
    """Print a sweep's table and write ``sweep.csv``.

    Args:
        folder: The sweep's folder.

    Returns:
        The error of each job that failed, by its folder's name.
    """
    runs = [run for run in find_runs([folder]) if run.path.parent == folder]
    keys = differing(runs)
    failed = {run.path.name: run.error for run in runs if run.error and not run.results}
    runs.sort(key=lambda run: -run.metrics.get("val/cider", float("-inf")))
    rows = [_row(run, keys) for run in runs]
    table = Table(title=f"{escape(str(folder))}: {sum(bool(run.results) for run in runs)} of {len(runs)} jobs finished")
    for name in rows[0]:
        table.add_column(escape(name), justify="left" if name in (*keys, "status") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else escape(str(cell)) for cell in row.values()))
    Console().print(table)
    with open(folder / "sweep.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"Sweep       {folder / 'sweep.csv'}")
    return failed


def _row(run: Run, keys: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"job": run.path.name} | {key: run.overrides.get(key, "") for key in keys}
    row["status"] = run.status
    row |= {title: run.metrics.get(name, "") for name, title in COLUMNS.items()}
    return row | {"steps": run.results.get("steps", ""), "minutes": run.results.get("minutes", "")}
