"""Write runs into the table of runs, and tables into pages: `fastcap results [RUN ...] [--csv FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import one_clear_error
from fastcap.reporting.runs import find_runs
from fastcap.reporting.tables import add_runs, rebuild

TABLE = Path("experiments/results.csv")
PAGES = ("README.md", "docs/**/*.md", "experiments/**/*.md")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap results",
        description="Write finished runs into the table of runs, once each, and anew the tables that README.md and the "
        "pages below docs/ and experiments/ mark by <!-- quality: ... --> and <!-- speed: ... -->.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, or folders of them, to write into the table")
    parser.add_argument("--csv", type=Path, default=TABLE, help="the table of runs (default: %(default)s)")
    return parser.parse_args(arguments)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    if options.runs:
        new, changed = add_runs(options.csv, find_runs(options.runs), Path.cwd())
        print(f"Runs        {options.csv} ({new} new, {changed} changed)")
    for page in (page for pattern in PAGES for page in sorted(Path().glob(pattern))):
        if count := rebuild(page):
            print(f"Tables      {page} ({count})")


if __name__ == "__main__":
    main()
