"""The table of all runs, ``experiments/results.csv``: one row a run, from the run's own files."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcap.reporting.runs import Run
from fastcap.utils.errors import UserError
from fastcap.utils.files import write_text

COLUMNS = (
    *("date", "commit", "dirty", "seed", "overrides", "decoder", "data", "split", "images", "steps", "cider", "bleu4"),
    *("val_loss", "decode_ms", "params", "minutes", "length_beam", "beams", "distinct", "repetitions"),
    *("unseen_bigrams", "run"),
)
SCORES = ("cider", "bleu4", "distinct", "repetitions", "unseen_bigrams")
# Overrides that change no number.
_NO_NUMBER = re.compile(r"[+~]*(logger|callbacks|hydra|name|resume)\b")
_ABSOLUTE = re.compile(r"(?<![\w.\-])/(?:[^/\s,\]}'\"]+/)*[^/\s,\]}'\"]+")

Row = dict[str, str]


def row_of(run: Run, base: Path) -> Row:
    """Describe a finished run; what it does not tell stays empty.

    Args:
        run: The run.
        base: The folder that paths are told from; only the end of others is told.
    """
    results = run.results
    split = str(results.get("split") or "val")
    refinement = results.get("refinement") or {}
    same = ("date", "commit", "dirty", "seed", "data", "images", "decode_ms", "minutes")
    values = {
        **{name: results.get(name) for name in same},
        "overrides": _told(results.get("given") or (), base),
        "decoder": str(results.get("decoder") or "").rpartition(".")[2],
        "split": split,
        "steps": refinement.get("num_steps"),
        "length_beam": refinement.get("length_beam"),
        "beams": refinement.get("num_beams"),
        **{name: run.metrics.get(f"{split}/{name}") for name in SCORES},
        "val_loss": run.metrics.get(f"{split}/loss"),
        "params": results.get("parameters"),
        "run": _place(run.path, base),
    }
    return {name: _text(values[name]) for name in COLUMNS}


def read_table(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Read a CSV table.

    Raises:
        UserError: If it cannot be read, lacks one of ``columns`` or has a line of another length.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = reader.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path}: no column {missing[0]!r}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}: line {number}: not {len(names)} cells")
    return rows


def add_runs(path: Path, runs: Iterable[Run], base: Path) -> tuple[int, int]:
    """Write finished runs into the table; one that it has already (by folder and date) keeps its place.

    Args:
        path: The table; made where there is none.
        runs: The runs; unfinished ones are left out.
        base: The folder that paths are told from.

    Returns:
        How many were new, and how many had changed.

    Raises:
        UserError: If the file is no such table or cannot be written.
    """
    rows = {_key(row): row for row in (read_table(path) if path.exists() else [])}
    new = changed = 0
    for run in runs:
        if not isinstance(run.results.get("metrics"), dict):
            continue
        row = row_of(run, base)
        known = rows.get(_key(row))
        new += known is None
        changed += known is not None and known != row
        rows[_key(row)] = row
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_text(path, text.getvalue())
    return new, changed


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["run"], row["date"]


def _told(given: Sequence[str], base: Path) -> str:
    """Overrides as one text, without what changes no number, and without this machine's folders."""
    words = [str(text) for text in given if not _NO_NUMBER.match(str(text))]
    return _ABSOLUTE.sub(lambda found: _place(Path(found[0]), base), " ".join(words))


def _place(path: Path, base: Path) -> str:
    whole = Path(os.path.abspath(path))
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else "/".join(whole.parts[1:][-2:])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
