"""The table of all runs, ``experiments/results.csv``, and tables in Markdown pages, made anew from CSV files.

A run is a row of the table, from its own files. In a page ``<!-- quality: results.csv run=003/* split=val -->`` and
``<!-- /quality -->`` hold rows of the table of runs, ``<!-- speed: bench.csv -->`` and ``<!-- /speed -->`` those of
``fastcap bench captioners``. The file is told from the page's folder; patterns (``*``, ``?``, ``[12]``) of its columns
choose rows. Each marker begins a line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from fastcap.reporting.runs import Run
from fastcap.utils.errors import UserError
from fastcap.utils.files import write_rows

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
OURS = "fastcap"  # what the systems' names of this package begin with
SPEED_COLUMNS = (
    *("system", "runtime", "precision", "params", "file_mb", "p50_ms", "p95_ms", "peak_mb", "resolution", "threads"),
    *("beams", "steps", "weights", "runs"),
)
_OPEN = re.compile(r"^<!-- (quality|speed): ", re.MULTILINE)
_BLOCK = re.compile(
    r"^<!-- (?P<kind>quality|speed): (?P<what>[^\n]*?) -->\n(?P<body>.*?)^<!-- /(?P=kind) -->", re.DOTALL | re.MULTILINE
)


def row_of(run: Run, base: Path) -> Row:
    """Describe a finished run; paths are told from ``base``, of others only the end; what is not known stays empty."""
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
    """Read a CSV table; a ``UserError`` says that it lacks one of ``columns``, or has a line of another length."""
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
    write_rows(path, list(rows.values()), COLUMNS)
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


def rebuild(page: Path) -> int:
    """Make a page's tables anew and return how many there are; a marker that cannot be used is a ``UserError``."""

    def fresh(found: re.Match[str]) -> str:
        kind, what = found["kind"], found["what"]
        return f"<!-- {kind}: {what} -->\n{_table(page, kind, what)}<!-- /{kind} -->"

    try:
        text = page.read_text(encoding="utf-8")
        if len(_OPEN.findall(text)) != len(_BLOCK.findall(text)):
            raise UserError(f"{page}: a marker <!-- quality: ... --> or <!-- speed: ... --> without its end")
        built, count = _BLOCK.subn(fresh, text)
        if built != text:
            page.write_text(built, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}") from error
    return count


def _table(page: Path, kind: str, what: str) -> str:
    """Write the table that a marker of a page asks for."""
    name, *patterns = what.split()
    columns = COLUMNS if kind == "quality" else SPEED_COLUMNS
    chosen = read_table(page.parent / name, columns)
    for pattern in patterns:
        column, equals, wanted = pattern.partition("=")
        if not equals or column not in columns:
            raise UserError(f"{page}: <!-- {kind}: {what} -->: {column!r} is no column of {name}")
        chosen = [row for row in chosen if fnmatchcase(row[column], wanted)]
    if not chosen:
        raise UserError(f"{page}: <!-- {kind}: {what} -->: no row of {name} is like that")
    return markdown_table(quality_lines(chosen) if kind == "quality" else speed_lines(chosen))


def markdown_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Write lines of cells by column as a Markdown table; an empty column is left out, numbers are set to the right."""
    names = [name for name in lines[0] if any(line[name] for line in lines)]
    numeric = [all(re.fullmatch(r"[\d.–]*", line[name]) for line in lines) for name in names]
    rule = ["--:" if number else "---" for number in numeric]
    cells = [names, rule, *([line[name].replace("|", "\\|") for name in names] for line in lines)]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def quality_lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Lay out rows of the table of runs, by column."""
    return [
        {
            "run": row["run"],
            "decoding": _decoding(row) or row["decoder"],
            "data": f"{row['data']} {row['split']}, {row['images']} images",
            "CIDEr-D": _number(row["cider"], 1),
            "BLEU-4": _number(row["bleu4"], 1),
            "distinct %": _number(row["distinct"], 0),
            "repeated %": _number(row["repetitions"], 1),
            "unseen bigrams %": _number(row["unseen_bigrams"], 1),
            "decoding, ms": _number(row["decode_ms"], 1),
            "M params": _number(row["params"], 1, 1e-6),
            "seed": row["seed"],
            "code": row["commit"][:7] + ("+" if row["dirty"] == "True" else ""),
        }
        for row in rows
    ]


def speed_lines(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Lay out rows of ``fastcap bench captioners``; the last columns say how many times as fast as each baseline."""
    # Baselines are compared with where they decode greedily, which is their fastest.
    baselines = [row for row in rows if not row["system"].startswith(OURS) and row["beams"] in ("", "1")]
    return [
        {
            "system": ", ".join(filter(None, (row["system"], f"{row['resolution']} px", _decoding(row)))),
            "runtime": row["runtime"],
            "precision": row["precision"],
            "weights": row["weights"],
            "M params": _number(row["params"], 1, 1e-6),
            "file MB": _number(row["file_mb"]),
            "p50 ms": _number(row["p50_ms"]),
            "p95 ms": _number(row["p95_ms"]),
            "peak MB": _number(row["peak_mb"]),
            **{
                f"× {base['system']} {base['resolution']}": _number(base["p50_ms"], scale=1 / float(row["p50_ms"]))
                for base in baselines
            },
        }
        for row in rows
    ]


def _decoding(row: Mapping[str, str]) -> str:
    """Say how a system writes its captions."""
    if row["beams"]:
        return "greedy" if row["beams"] == "1" else f"beam {row['beams']}"
    if not row["steps"]:
        return ""
    lengths = row.get("length_beam", "")
    return f"{row['steps']} step{'s' * (row['steps'] != '1')}" + (f", length beam {lengths}" if lengths else "")


def _number(text: str, digits: int | None = None, scale: float = 1.0) -> str:
    """Round a number; without ``digits`` to three figures or whole numbers. What is none stays as it is."""
    try:
        value = scale * float(text)
    except ValueError:
        return text
    if value != value:
        return "–"
    return f"{value:.{int(value < 100) if digits is None else digits}f}"
