"""The command line of `fastcap bench`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap bench", description="Measure speed, memory and arithmetic.")
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("backbone", help="backbones side by side, over image sizes and batches")
    command.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME",
        help="choices of the backbone group; NAME+KEY=VALUE changes it (spatial_mamba_tiny+d_state=8), NAME+sequential "
        "is the same network scanning token by token (default: ours, each also sequential, vit_small and "
        "efficientnet_lite0)",
    )
    command.add_argument("--sizes", nargs="+", type=_positive, default=[128, 224, 384, 512], metavar="PX")
    command.add_argument("--batches", nargs="+", type=_positive, default=[1, 16], metavar="N")
    command.add_argument("--no-memory", action="store_true", help="leave out memory, which takes a process a case")
    captioners = commands.add_parser("captioners", help="image file to text: ours beside known captioners")
    _add_captioners(captioners)
    decoding = commands.add_parser("decoding", help="decoders alone: refinement beside writing word after word")
    decoding.add_argument("--models", nargs="+", type=Path, required=True, metavar="CKPT", help="checkpoints")
    decoding.add_argument(
        "--images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files or folders (default: validation images of the first checkpoint's own data)",
    )
    decoding.add_argument("--max-images", type=_positive, default=20, metavar="N", help="(default: %(default)s)")
    decoding.add_argument(
        "--refinements",
        nargs="+",
        type=_steps_and_lengths,
        default=[(steps, lengths) for lengths in (1, 3) for steps in (1, 2, 3, 4, 8)],
        metavar="STEPSxLENGTHS",
        help="steps and length candidates, e.g. 1x4 (default: 1, 2, 3, 4 and 8 steps with 1 and 3)",
    )
    decoding.add_argument("--beams", nargs="+", type=_positive, default=[1, 3], metavar="N")
    for each in (command, captioners, decoding):
        threads = 2 if each in (captioners, decoding) else os.cpu_count() or 1
        rounds = 10 if each is captioners else 5
        each.add_argument("--rounds", type=_positive, default=rounds, help="interleaved rounds (default: %(default)s)")
        each.add_argument("--threads", type=_positive, default=threads, help="threads (default: %(default)s)")
        each.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")
    return parser.parse_args(arguments)


def _add_captioners(command: argparse.ArgumentParser) -> None:
    command.add_argument("--models", nargs="+", default=[], metavar="PATH", help="ours: checkpoints, export folders")
    command.add_argument("--random", action="store_true", help="ours with random weights too, captions of 12 tokens")
    command.add_argument("--no-twin", action="store_true", help="without our autoregressive twin with random weights")
    command.add_argument("--no-compile", action="store_true", help="checkpoints without torch.compile")
    command.add_argument("--num-steps", nargs="+", type=_positive, default=[], metavar="N", help="refinement steps")
    command.add_argument("--peers", nargs="*", default=["git-base", "blip-base", "vit-gpt2"], metavar="NAME")
    command.add_argument(
        "--beams", nargs="+", type=_positive, default=[1, 4], metavar="N", help="peers' and the twin's"
    )
    command.add_argument("--num-tokens", type=_positive, default=12, help="of random weights (default: %(default)s)")
    command.add_argument("--size", type=_positive, default=224, metavar="PX", help="the peers' besides their own size")
    command.add_argument("--images", nargs="+", type=Path, metavar="PATH", help="files or folders (default: noise)")
    command.add_argument("--seconds", type=float, default=15.0, help="time budget a system (default: %(default)s)")
    command.add_argument("--no-memory", action="store_true", help="leave out memory, which takes a process a system")


def _steps_and_lengths(text: str) -> tuple[int, int]:
    steps, _, lengths = text.partition("x")
    try:
        return _positive(steps), _positive(lengths)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be like 1x4, steps and length candidates, found {text!r}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, found {text!r}")
    return int(text)
