"""Compare runs in one page: `fastcap report [RUN ...] [-o report.html]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import UserError, one_clear_error
from fastcap.reporting import find_runs, write_runs_page
from fastcap.training.checkpoints import RUNS_DIR


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap report", description="Compare runs in one HTML page that opens without a network."
    )
    parser.add_argument("runs", nargs="*", type=Path, help=f"run folders, or folders of them (default: {RUNS_DIR})")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="the page (default: %(default)s)"
    )
    return parser.parse_args(arguments)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    output = options.output
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(
            f"--output {output}: {'is a folder' if output.is_dir() else f'there is no folder {output.parent}'}"
        )
    runs = find_runs(options.runs or [RUNS_DIR])
    write_runs_page(runs, output)
    print(f"Report      {output} ({len(runs)} run{'s' if len(runs) != 1 else ''})")


if __name__ == "__main__":
    main()
