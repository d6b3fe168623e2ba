"""Write runs into the ledger and its rows into the tables: `fastcap results [RUN ...] [--csv FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import UserError, one_clear_error
from fastcap.reporting import find_runs
from fastcap.reporting.ledger import LedgerError, add_runs
from fastcap.reporting.quality import rebuild

LEDGER = Path("experiments/results.csv")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap results",
        description="Write finished runs into the ledger, once each, and make the tables of pages anew from it.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, or folders of them, to write into the ledger")
    parser.add_argument("--csv", type=Path, default=LEDGER, help="the ledger (default: %(default)s)")
    parser.add_argument(
        "--pages",
        nargs="*",
        type=Path,
        help="Markdown pages with <!-- quality: ... --> markers (default: README.md and those below experiments/)",
    )
    return parser.parse_args(arguments)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    try:
        if options.runs:
            new, changed = add_runs(options.csv, find_runs(options.runs), Path.cwd())
            print(f"Ledger      {options.csv} ({new} new, {changed} changed)")
        pages = options.pages
        if pages is None:
            pages = [page for page in (Path("README.md"), *sorted(Path("experiments").rglob("*.md"))) if page.is_file()]
        for page in pages:
            if count := rebuild(page):
                print(f"Tables      {page} ({count})")
    except LedgerError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    main()
