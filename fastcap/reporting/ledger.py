"""The ledger of all runs, ``experiments/results.csv``: one row a run, from the run's own files."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcap.reporting.runs import Run
from fastcap.utils.errors import UserError

COLUMNS = (
    *("date", "commit", "dirty", "seed", "overrides", "decoder", "data", "split", "images", "steps", "cider", "bleu4"),
    *("val_loss", "decode_ms", "params", "minutes", "lengths", "beams", "distinct", "repetitions", "strange", "run"),
)
SCORES = ("cider", "bleu4", "distinct", "repetitions", "strange")
_LATER = ("strange",)  # columns that older ledgers lack
_SAYS_NOTHING = re.compile(r"[+~]*(logger|callbacks|hydra|name|recipe|resume)\b")
_ABSOLUTE = re.compile(r"(?<![\w.\-])/(?:[^/\s,\]}'\"]+/)*[^/\s,\]}'\"]+")

Row = dict[str, str]


class LedgerError(UserError, ValueError):
    """A ledger that cannot be used; the message names the file and what is wrong."""


def row_of(run: Run, base: Path) -> Row:
    """Describe a finished run; what it does not tell stays empty.

    Args:
        run: The run.
        base: The folder that paths are told from; only the end of others is told.
    """
    results, config = run.results, run.config
    split = str(results.get("split") or "val")
    refinement = results.get("refinement") or {}
    given = results.get("given") or [f"{key}={value}" for key, value in run.overrides.items()]
    decoder = str(results.get("decoder") or (config.get("decoder") or {}).get("_target_") or "")
    values = {
        **{name: results.get(name) for name in ("date", "commit", "dirty", "data", "images", "decode_ms", "minutes")},
        "seed": results.get("seed", config.get("seed")),
        "overrides": _told(given, base),
        "decoder": decoder.rpartition(".")[2],
        "split": split,
        "steps": refinement.get("num_steps"),
        "lengths": refinement.get("num_lengths"),
        "beams": refinement.get("num_beams"),
        **{name: run.metrics.get(f"{split}/{name}") for name in SCORES},
        "val_loss": run.metrics.get(f"{split}/loss"),
        "params": results.get("parameters"),
        "run": _place(run.path, base),
    }
    return {name: _text(values[name]) for name in COLUMNS}


def read_ledger(path: Path) -> list[Row]:
    """Read a ledger; nothing where there is no file.

    Raises:
        LedgerError: If it is no ledger.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = reader.fieldnames or []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise LedgerError(f"{path}: cannot be read ({error})") from error
    if missing := [name for name in COLUMNS if name not in names and name not in _LATER]:
        raise LedgerError(f"{path}: no ledger of runs (no column {missing[0]!r})")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise LedgerError(f"{path}: line {number}: not {len(names)} cells")
        row.update({name: "" for name in _LATER if name not in row})
    return rows


def add_runs(path: Path, runs: Iterable[Run], base: Path) -> tuple[int, int]:
    """Write finished runs into a ledger; one that it has already (by folder and date) keeps its place.

    A recipe's own folder is left out: its stages are runs.

    Args:
        path: The ledger; made where there is none.
        runs: The runs; unfinished ones are left out.
        base: The folder that paths are told from.

    Returns:
        How many were new, and how many had changed (decoding was timed since).

    Raises:
        LedgerError: If the file is no ledger or cannot be written.
    """
    rows = {_key(row): row for row in read_ledger(path)}
    new = changed = 0
    for run in runs:
        if not isinstance(run.results.get("metrics"), dict) or "stages" in run.results:
            continue
        row = row_of(run, base)
        known = rows.get(_key(row))
        new += known is None
        changed += known is not None and known != row
        rows[_key(row)] = row
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())
        os.replace(part, path)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be written ({error.strerror})") from error
    return new, changed


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["run"], row["date"]


def _told(given: Sequence[str], base: Path) -> str:
    """Overrides as one text, without what changes no number, and without this machine's folders."""
    words = [str(text) for text in given if not _SAYS_NOTHING.match(str(text))]
    return _ABSOLUTE.sub(lambda found: _place(Path(found[0]), base), " ".join(words))


def _place(path: Path, base: Path) -> str:
    whole = Path(os.path.abspath(path))
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else "/".join(whole.parts[1:][-2:])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
