"""Tables of quality in Markdown pages, made of the ledger's rows between two markers.

``<!-- quality: results.csv run=003/* split=val -->`` and ``<!-- /quality -->``: the ledger, told from the page's
folder, and patterns (``*``, ``?``, ``[12]``) of the columns by which rows are chosen; each marker begins a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from fastcap.reporting.ledger import COLUMNS, LedgerError, Row, read_ledger

_BLOCK = re.compile(
    r"^(?P<open><!-- quality: (?P<what>[^\n]*?) -->)\n(?P<body>.*?)^<!-- /quality -->", re.DOTALL | re.MULTILINE
)
_OPEN = re.compile(r"^<!-- quality: ", re.MULTILINE)


def rebuild(page: Path) -> int:
    """Make a page's tables of quality anew.

    Returns:
        How many there are.

    Raises:
        LedgerError: Naming the page, if a marker or its ledger cannot be used.
    """
    try:
        text = page.read_text(encoding="utf-8")
        if len(_OPEN.findall(text)) != len(_BLOCK.findall(text)):
            raise LedgerError(f"{page}: a marker <!-- quality: ... --> without its <!-- /quality -->")
        built, count = _BLOCK.subn(
            lambda found: f"{found['open']}\n{table(page, found['what'])}<!-- /quality -->", text
        )
        if built != text:
            page.write_text(built, encoding="utf-8")
    except OSError as error:
        raise LedgerError(f"{page}: {error.strerror}") from error
    return count


def table(page: Path, what: str) -> str:
    """Write the table that a marker of a page asks for.

    Args:
        page: The page.
        what: The ledger and the patterns.

    Raises:
        LedgerError: If there is no such ledger, column or row.
    """
    name, *patterns = what.split()
    chosen = read_ledger(page.parent / name)
    for pattern in patterns:
        column, equals, wanted = pattern.partition("=")
        if not equals or column not in COLUMNS:
            raise LedgerError(f"{page}: <!-- quality: {what} -->: {column!r} is no column of {name}")
        chosen = [row for row in chosen if fnmatchcase(row[column], wanted)]
    if not chosen:
        raise LedgerError(f"{page}: <!-- quality: {what} -->: no row of {name} is like that")
    return markdown(chosen)


def markdown(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table; a column that says nothing is left out."""
    lines = [
        {
            "run": row["run"],
            "captions by": _writing(row),
            "data": f"{row['data']} {row['split']}, {row['images']} images",
            "CIDEr-D": _number(row["cider"]),
            "BLEU-4": _number(row["bleu4"]),
            "distinct %": _number(row["distinct"], 0),
            "repeated %": _number(row["repetitions"]),
            "strange %": _number(row["strange"]),
            "decoding, ms": _number(row["decode_ms"]),
            "M params": _number(row["params"], 1, 1e-6),
            "seed": row["seed"],
            "code": row["commit"][:7] + ("+" if row["dirty"] == "True" else ""),
        }
        for row in rows
    ]
    names = [name for name in lines[0] if any(line[name] for line in lines)]
    left = ("run", "captions by", "data", "code")
    rule = ["---" if name in left else "--:" for name in names]
    cells = [names, rule, *([line[name] for name in names] for line in lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def _writing(row: Row) -> str:
    if row["beams"]:
        return "greedy words" if row["beams"] == "1" else f"words, {row['beams']} beams"
    if not row["steps"]:
        return row["decoder"]
    lengths = f", {row['lengths']} length{'s' * (row['lengths'] != '1')}" if row["lengths"] else ""
    return f"{row['steps']} step{'s' * (row['steps'] != '1')}{lengths}"


def _number(text: str, digits: int = 1, scale: float = 1.0) -> str:
    try:
        return f"{scale * float(text):.{digits}f}"
    except ValueError:
        return text
