"""Measure: `fastcap bench backbone | captioners | decoding`; rows (CSV) as they are measured, and facts (JSON)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from fastcap.cli import one_clear_error
from fastcap.reporting.tables import markdown_table, speed_lines
from fastcap.utils.errors import UserError
from fastcap.utils.files import write_json, write_rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap bench", description="Measure speed, memory and arithmetic.")
    commands = parser.add_subparsers(dest="what", required=True)
    backbone = commands.add_parser("backbone", help="backbones side by side, over image sizes and batches")
    backbone.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME",
        default=["spatial_mamba_tiny", "spatial_mamba_small", "vit_small", "efficientnet_lite0"],
        help="choices of the backbone group; NAME+KEY=VALUE changes it (spatial_mamba_tiny+d_state=8) "
        "(default: %(default)s)",
    )
    backbone.add_argument("--sizes", nargs="+", type=_positive, default=[128, 224, 384, 512], metavar="PX")
    backbone.add_argument("--batches", nargs="+", type=_positive, default=[1, 16], metavar="N")

    captioners = commands.add_parser("captioners", help="image file to text: ours beside known captioners")
    captioners.add_argument(
        "--models",
        nargs="+",
        default=["pretrained"],
        metavar="PATH",
        help="ours: .onnx files, checkpoints, folders of exports, 'pretrained' (default: pretrained)",
    )
    captioners.add_argument(
        "--num-steps", nargs="+", type=_positive, default=[], metavar="N", help="refinement steps of checkpoints"
    )
    captioners.add_argument(
        "--baselines",
        nargs="*",
        default=["git-base", "blip-base", "vit-gpt2", "florence-2-base", "smolvlm-256m"],
        metavar="NAME",
        help="(default: %(default)s)",
    )
    captioners.add_argument("--beams", nargs="+", type=_positive, default=[1], metavar="N", help="of the baselines")
    captioners.add_argument("--images", nargs="+", type=Path, metavar="PATH", help="files or folders (default: noise)")

    decoding = commands.add_parser("decoding", help="decoders alone: refinement beside autoregressive decoding")
    decoding.add_argument("--models", nargs="+", type=Path, required=True, metavar="CKPT", help="checkpoints")
    decoding.add_argument(
        "--max-images",
        type=_positive,
        default=20,
        metavar="N",
        help="validation images of the first checkpoint's own data (default: %(default)s)",
    )
    decoding.add_argument(
        "--refinements",
        nargs="+",
        type=_steps_and_lengths,
        default=[(steps, lengths) for lengths in (1, 3) for steps in (1, 2, 3, 4, 8)],
        metavar="STEPSxLENGTHS",
        help="steps and length beam, e.g. 1x4 (default: 1, 2, 3, 4 and 8 steps with 1 and 3)",
    )
    decoding.add_argument("--beams", nargs="+", type=_positive, default=[1, 3], metavar="N")
    for command, seconds in ((backbone, 2.0), (captioners, 10.0), (decoding, 2.0)):
        command.add_argument("--seconds", type=float, default=seconds, help="time of each row (default: %(default)s)")
        command.add_argument("--rounds", type=_positive, default=5, help="turns it is taken in (default: %(default)s)")
        command.add_argument("--threads", type=_positive, default=2, help="threads (default: %(default)s)")
        command.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")
    for command in (backbone, captioners):
        command.add_argument("--memory", action="store_true", help="peak memory too, which takes a process a row")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        raise UserError(f"--seconds {options.seconds:g} must be positive")
    return options


def run(options: argparse.Namespace) -> Path:
    """Run a benchmark; returns the folder with its table, written after each measurement, and its facts."""
    # Imported only now: --help and refusals need no torch.
    from fastcap.tools.measure import machine

    benchmark = importlib.import_module(f"fastcap.tools.{options.what}")
    folder = options.out or Path("runs/bench") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
    table, facts = folder / f"{options.what}.csv", machine(options.threads)
    asked = {name: str(value) for name, value in vars(options).items() if name != "what"}
    rows: list[dict[str, Any]] = []
    try:
        write_json(table.with_suffix(".json"), {**facts, "options": asked, "method": benchmark.METHOD})
        for rows in benchmark.measure(options, lambda line: print(line, file=sys.stderr, flush=True)):
            write_rows(table, rows)
    finally:
        if rows:
            print(f"\n{facts['processor']}, {options.threads} threads, matmul {facts['matmul_gflop_per_s']} GFLOP/s\n")
            lines = [{name: str(value) for name, value in row.items()} for row in rows]
            print(markdown_table(speed_lines(lines) if options.what == "captioners" else lines))
            print(f"Table    {table}\nFacts    {table.with_suffix('.json')}")
    return folder


def _steps_and_lengths(text: str) -> tuple[int, int]:
    steps, _, lengths = text.partition("x")
    try:
        return _positive(steps), _positive(lengths)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be like 1x4, steps and length beam, found {text!r}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, found {text!r}")
    return int(text)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    run(parse_arguments(arguments))


if __name__ == "__main__":
    main()
