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
    scan = commands.add_parser("scan", help="the four-direction scan alone, beside the recurrence token by token")
    scan.add_argument("--side", type=_positive, default=14, help="patches a side of the grid (default: %(default)s)")
    scan.add_argument("--width", type=_positive, default=384, help="channels of each direction (default: %(default)s)")
    scan.add_argument("--head-dims", nargs="+", type=_positive, default=[32, 96], metavar="P", help="channels a head")
    scan.add_argument(
        "--forms",
        nargs="+",
        default=[],
        metavar="NAME",
        help="sequential, published_sequential, mambapy_sequential, mambapy_parallel, chunks, dual (default: all); "
        "published_indexed, which takes minutes",
    )
    captioners = commands.add_parser("captioners", help="image file to text: ours beside known captioners")
    _add_captioners(captioners)
    growth = commands.add_parser("growth", help="time over pixels, refinement steps and images a batch")
    growth.add_argument("--model", type=Path, metavar="CKPT", help="checkpoint (default: random weights)")
    growth.add_argument("--sizes", nargs="+", type=_positive, default=[128, 176, 224, 320, 416, 512], metavar="PX")
    growth.add_argument("--steps", nargs="+", type=_positive, default=[1, 2, 3, 4, 6, 8], metavar="N")
    growth.add_argument("--batches", nargs="+", type=_positive, default=[1, 2, 4, 8, 16, 32], metavar="N")
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
    loader = commands.add_parser("loader", help="images a second: JPEG folder, pixel cache, shards; beside training's")
    _add_loader(loader)
    for each in (command, scan, captioners, growth, decoding):
        threads = 2 if each in (captioners, growth, decoding) else os.cpu_count() or 1
        rounds = 10 if each is captioners else 5
        each.add_argument("--rounds", type=_positive, default=rounds, help="interleaved rounds (default: %(default)s)")
        each.add_argument("--threads", type=_positive, default=threads, help="threads (default: %(default)s)")
        each.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")
    cost = commands.add_parser("cost", help="what a recipe takes: memory, arithmetic, hours of an assumed GPU")
    _add_cost(cost)
    random = commands.add_parser("random", help="write a checkpoint with random weights, for timing (to export, too)")
    random.add_argument("file", type=Path, help="the checkpoint to write")
    random.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of conf/train.yaml (default: our model)")
    table = commands.add_parser("table", help="the captioners' table as Markdown, from its CSV file")
    table.add_argument("csv", type=Path, help="bench.csv")
    table.add_argument("--readme", type=Path, help="put it between the markers of this file instead of printing it")
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


def _add_loader(loader: argparse.ArgumentParser) -> None:
    loader.add_argument("--root", type=Path, required=True, metavar="DIR", help="caption set in COCO's format")
    loader.add_argument(
        "--annotations",
        default="annotations/captions_val.json",
        metavar="FILE",
        help="below DIR (default: %(default)s)",
    )
    loader.add_argument("--images", type=_positive, default=1000, metavar="N", help="at most (default: %(default)s)")
    loader.add_argument("--size", type=_positive, default=224, metavar="PX", help="(default: %(default)s)")
    loader.add_argument("--batch", type=_positive, default=64, metavar="N", help="(default: %(default)s)")
    loader.add_argument("--workers", nargs="+", type=_natural, default=[0, 2], metavar="N", help="(default: 0 2)")
    loader.add_argument(
        "--loaders",
        nargs="+",
        default=["folder", "cached", "shards", "shards-jpeg"],
        metavar="NAME",
        help="folder, cached, shards, shards-jpeg (default: all; shards need the extra `streaming`)",
    )
    loader.add_argument("--runs", nargs="+", type=Path, default=[], metavar="DIR", help="runs that tell what they took")
    loader.add_argument("--consumed", type=float, metavar="N", help="images a second that training takes, if known")
    loader.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")
    loader.add_argument("--rounds", type=_positive, default=5, help="interleaved rounds (default: %(default)s)")


def _add_cost(cost: argparse.ArgumentParser) -> None:
    cost.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of conf/train.yaml (experiment=coco_base)")
    for name, default, told in (
        ("images", 113_287, "training images"),
        ("num-words", 10_000, "vocabulary"),
        ("num-phrases", 3000, "phrases, where there are any"),
        ("caption-tokens", 12, "tokens of a caption"),
        ("devices", 1, "GPUs"),
    ):
        cost.add_argument(f"--{name}", type=_positive, default=default, metavar="N", help=f"{told} (%(default)s)")
    for name, fraction, told in (
        ("tflops", 312.0, "a GPU's peak, TFLOP/s"),
        ("utilisation", 0.1, "share of the peak that is reached"),
        ("bandwidth-tb", 1.6, "a GPU's memory bandwidth, TB/s"),
    ):
        cost.add_argument(f"--{name}", type=_above_zero, default=fraction, metavar="X", help=f"{told} (%(default)s)")
    cost.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, found {text!r}")
    return value


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(text)


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
