"""``metrics.csv``: rows that are on the disk as soon as they are logged, and that a resumed run carries on.

Lightning's writer empties the file of a run that is resumed in place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastcap.utils.files import write_text


class RowWriter:
    """Append rows to a CSV file, whose header grows with the names that come.

    The file is replaced as a whole when its header grows: a process killed at any moment leaves at most one half row,
    at the end, which is left out when the file is read again.

    Args:
        path: The file.
        resumed_step: Earlier rows below this step are kept; None starts the file anew.
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        self.path = path
        self.names: list[str] = []
        rows = [] if resumed_step is None else [r for r in read_rows(path) if int(r["step"]) < resumed_step]
        path.unlink(missing_ok=True) if not rows else self._replace(rows)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Write a row."""
        row = {name: getattr(value, "item", lambda v=value: v)() for name, value in metrics.items()} | {"step": step}
        if row.keys() <= set(self.names):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(_lines(self.names, [row]))
        else:
            self._replace([*read_rows(self.path), row])

    def save(self) -> None:
        """Do nothing: every row is on the disk already (Lightning calls this)."""

    def _replace(self, rows: list[dict[str, Any]]) -> None:
        self.names = sorted(set(self.names).union(*rows))
        header = dict(zip(self.names, self.names, strict=True))
        write_text(self.path, _lines(self.names, [header, *rows]))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file's whole rows, without empty cells; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    return [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(io.StringIO(whole))]


def _lines(names: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, names).writerows(rows)
    return text.getvalue()
