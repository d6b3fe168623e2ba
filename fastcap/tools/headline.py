"""The captioners' table, from its CSV file to text: for the terminal, and for the README between two markers."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcap.tools.systems import OURS, TWIN
from fastcap.utils.errors import UserError

COLUMNS = ("system", "runtime", "precision", "params", "file_mb", "p50_ms", "p95_ms", "peak_mb")
MORE_COLUMNS = ("resolution", "threads", "beams", "steps", "weights", "runs")
_BLOCK = re.compile(r"<!-- headline:(?P<path>.*?)-->\n(?P<body>.*?)<!-- /headline -->", re.DOTALL)
_SMALL = 1e-9
Row = Mapping[str, str]


class TableError(UserError, ValueError):
    """A table that cannot be used; the message names the file and what is wrong."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Read ``bench.csv``.

    Raises:
        TableError: If it is missing or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    missing = [name for name in (*COLUMNS, *MORE_COLUMNS) if not rows or name not in rows[0]]
    if missing:
        raise TableError(f"{path}: not a table of captioners (no column {missing[0]!r})")
    for number, row in enumerate(rows, start=2):
        for name in ("params", "file_mb", "p50_ms", "p95_ms", "peak_mb"):
            try:
                float(row[name])
            except (TypeError, ValueError) as error:
                raise TableError(f"{path}: line {number}: {name} = {row[name]!r} is no number") from error
    return rows


def title(row: Row) -> str:
    """Name a row: system, how it writes, what weights."""
    parts = [row["system"]]
    if row["system"] not in (OURS, TWIN):
        parts.append(f"{row['resolution']} px")
    if row["beams"]:
        parts.append("greedy" if row["beams"] == "1" else f"beam {row['beams']}")
    elif row["steps"]:
        parts.append(f"{row['steps']} step" + "s" * (row["steps"] != "1"))
    return ", ".join(parts)


def references(rows: Sequence[Row]) -> list[Row]:
    """Return the peers that others are compared with: greedy, each at each image size."""
    return [row for row in rows if row["system"] not in (OURS, TWIN) and row["beams"] == "1"]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Lay the table out, its head first; the last columns say how many times faster than the peers each row is."""
    peers = references(rows)
    head = ["system", "runtime", "precision", "weights", "M params", "file MB", "p50 ms", "p95 ms", "peak MB"]
    lines = [[*head, *(f"× {row['system']} {row['resolution']}" for row in peers)]]
    for row in rows:
        p50 = float(row["p50_ms"])
        measured = [_number(float(row[name])) for name in ("file_mb", "p50_ms", "p95_ms", "peak_mb")]
        faster = [_number(float(peer["p50_ms"]) / max(p50, _SMALL)) for peer in peers]
        about = [title(row), row["runtime"], row["precision"], row["weights"], f"{float(row['params']) / 1e6:.1f}"]
        lines.append([*about, *measured, *faster])
    return lines


def _number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def text_table(rows: Sequence[Row]) -> str:
    """Lay the table out in columns for a terminal."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = 4
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(path: Path) -> str:
    """Write the table of ``bench.csv`` as Markdown, with what its ``bench.json`` says of the machine below.

    Raises:
        TableError: If the table cannot be read.
    """
    rows = read_table(path)
    head, *lines = cells(rows)
    rule = ["---"] * 4 + ["--:"] * (len(head) - 4)
    table = "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
    return f"{table}\n\n{_circumstances(path, rows)}\n"


def _circumstances(path: Path, rows: Sequence[Row]) -> str:
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        machine = f"{facts['processor']}, {rows[0]['threads']} threads, {facts['matmul_gflop_per_s']} GFLOP/s in matmul"
    except (OSError, ValueError, KeyError):
        machine = f"{rows[0]['threads']} threads"
    sizes = sorted({row["resolution"] for row in rows if row["system"] in (OURS, TWIN)})
    ours = f" Ours at {' and '.join(sizes)} px." if sizes else ""
    return (
        f"Image file to text, one image at a time, side by side in one process; {machine}.{ours} Peers have random "
        f"weights and write exactly 12 tokens. × says how many times faster than that peer, greedy."
    )


def readme_table(text: str) -> tuple[str, str]:
    """Find the README's table: the path of the CSV file that it was made of, empty before there is one, and itself.

    Raises:
        TableError: If the markers are missing.
    """
    found = _BLOCK.search(text)
    if not found:
        raise TableError("no markers <!-- headline: ... --> and <!-- /headline -->")
    return found["path"].strip(), found["body"]


def update_readme(readme: Path, table: Path) -> None:
    """Put the table of a CSV file between the README's markers.

    Raises:
        TableError: If the table or the markers cannot be read, or the README cannot be written.
    """
    body = markdown(table)
    place = Path(os.path.relpath(table, readme.parent)).as_posix()
    try:
        text = readme.read_text(encoding="utf-8")
        readme_table(text)
        readme.write_text(
            _BLOCK.sub(lambda _: f"<!-- headline: {place} -->\n{body}<!-- /headline -->", text, count=1),
            encoding="utf-8",
        )
    except OSError as error:
        raise TableError(f"{readme}: {error.strerror}") from error
    except TableError as error:
        raise TableError(f"{readme}: {error}") from error
