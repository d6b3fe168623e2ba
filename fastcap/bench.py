"""Measure: `fastcap bench backbone | scan | loader`. Writes a table, a plot and the circumstances."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from fastcap.cli import UserError, one_clear_error


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap bench", description="Measure speed, memory and arithmetic.")
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("backbone", help="backbones side by side, over image sizes and batches")
    command.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME",
        help="choices of the backbone group; NAME+sequential is the same network scanning token by token "
        "(default: ours, each also sequential, vit_small and efficientnet_lite0)",
    )
    command.add_argument("--sizes", nargs="+", type=_positive, default=[128, 224, 384, 512], metavar="PX")
    command.add_argument("--batches", nargs="+", type=_positive, default=[1, 16], metavar="N")
    command.add_argument("--no-memory", action="store_true", help="leave out memory, which takes a process a case")
    scan = commands.add_parser("scan", help="the four-direction scan alone, beside the recurrence token by token")
    scan.add_argument("--side", type=_positive, default=14, help="patches a side of the grid (default: %(default)s)")
    scan.add_argument("--width", type=_positive, default=384, help="channels of each direction (default: %(default)s)")
    scan.add_argument("--head-dims", nargs="+", type=_positive, default=[32, 96], metavar="P", help="channels a head")
    loader = commands.add_parser("loader", help="images a second: JPEG folder, pixel cache, shards; beside training's")
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
    for each in (command, scan, loader):
        each.add_argument("--out", type=Path, help="folder (default: a new one under runs/bench)")
        each.add_argument("--rounds", type=_positive, default=5, help="interleaved rounds (default: %(default)s)")
    for each in (command, scan):
        each.add_argument("--threads", type=_positive, default=os.cpu_count() or 1, help="torch threads (default: all)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, found {text!r}")
    return int(text)


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def bench_backbone(arguments: argparse.Namespace) -> Path:
    """Run the backbones' benchmark; returns the folder with ``backbone.{csv,png,json}``."""
    import torch

    from fastcap.benchmark.backbones import default_backbones, measure

    torch.set_num_threads(arguments.threads)
    names = list(dict.fromkeys(arguments.backbones or default_backbones()))
    rows, facts = measure(
        names,
        sorted(set(arguments.sizes)),
        sorted(set(arguments.batches)),
        arguments.rounds,
        not arguments.no_memory,
        lambda line: print(line, file=sys.stderr),
    )
    folder = write(arguments.out, "backbone", rows, facts)
    draw(folder / "backbone.png", rows, facts)
    print_rows(rows, facts)
    print(
        f"Table    {folder / 'backbone.csv'}\nPlot     {folder / 'backbone.png'}\nFacts    {folder / 'backbone.json'}"
    )
    return folder


def bench_scan(arguments: argparse.Namespace) -> Path:
    """Run the scan's benchmark; returns the folder with ``scan.{csv,json}``."""
    import torch

    from fastcap.benchmark.scans import measure_scans

    wrong = [channels for channels in arguments.head_dims if arguments.width % channels]
    if wrong:
        raise UserError(f"--head-dims {wrong[0]} does not divide --width {arguments.width}")
    torch.set_num_threads(arguments.threads)
    rows, facts = measure_scans(arguments.side, arguments.width, arguments.head_dims, arguments.rounds)
    folder = write(arguments.out, "scan", rows, facts)
    print(
        f"{facts['processor']}, {facts['threads']} threads; {facts['tokens']} tokens x {arguments.width} x 4 directions"
    )
    print(f"{'form':<12}{'head':>5}{'pass':>20}{'batch':>7}{'ms':>11}{'speed-up':>10}")
    for row in rows:
        print("{form:<12}{head_dim:>5}{pass:>20}{batch:>7}{ms:>11.2f}{speedup:>10.1f}".format(**row))
    print(f"Table    {folder / 'scan.csv'}\nFacts    {folder / 'scan.json'}")
    return folder


def bench_loader(arguments: argparse.Namespace) -> Path:
    """Run the loaders' benchmark; returns the folder with ``loader.{csv,json}``."""
    from fastcap.benchmark.loaders import consumption, measure_loaders

    if arguments.consumed is not None and not 0 < arguments.consumed < float("inf"):
        raise UserError(f"--consumed must be a positive number, found {arguments.consumed}")
    consumed = consumption(arguments.runs) | ({"given": arguments.consumed} if arguments.consumed else {})
    rows, facts = measure_loaders(
        arguments.root,
        arguments.annotations,
        arguments.images,
        arguments.size,
        arguments.batch,
        sorted(set(arguments.workers)),
        list(dict.fromkeys(arguments.loaders)),
        arguments.rounds,
        consumed,
        lambda line: print(line, file=sys.stderr),
    )
    folder = write(arguments.out, "loader", rows, facts)
    print(
        f"{facts['processor']}, {facts['cores']} cores; {facts['images']} images at {facts['size_px']} px, "
        f"batches of {facts['batch_size']}"
    )
    for name, need in consumed.items():
        print(f"training takes {need:.0f} images/s ({name})")
    print(
        f"{'loader':<13}{'kB/image':>9}{'workers':>9}{'images/s':>10}{'CPU ms':>9}"
        + "".join(f"  x {name}" for name in consumed)
    )
    for row in rows:
        size = facts["bytes_per_image"][row["loader"]] / 1000
        shares = "".join(f"{row[f'x {name}']:>{len(name) + 4}.1f}" for name in consumed)
        print(
            f"{row['loader']:<13}{size:>9.0f}{row['workers']:>9}{row['images_per_s']:>10.0f}"
            f"{row['cpu_ms_per_image']:>9}{shares}"
        )
    print(f"Table    {folder / 'loader.csv'}\nFacts    {folder / 'loader.json'}")
    return folder


def write(out: Path | None, name: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> Path:
    """Write a table and its circumstances; returns the folder.

    Raises:
        UserError: If the folder cannot be written.
    """
    folder = out or Path("runs/bench") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error})") from error
    return folder


def print_rows(rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Print the table."""
    peak = facts["matmul_peak_gflop_per_s"]
    print(f"{facts['processor']}, {facts['threads']} threads, fp32 matmul peak {peak} GFLOP/s")
    fields = {
        "size_px": "px",
        "batch": "batch",
        "latency_p50_ms": "ms",
        "gflop_per_image": "GFLOP",
        "gflop_per_s": "GFLOP/s",
        "share_of_peak": "of peak",
        "peak_memory_mb": "MB",
    }
    width = max(len(row["backbone"]) for row in rows)
    print(f"{'backbone':<{width}}" + "".join(f"{title:>9}" for title in fields.values()))
    for row in rows:
        print(f"{row['backbone']:<{width}}" + "".join(f"{row[field]:>9.5g}" for field in fields))


def draw(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Draw latency, GFLOP/s and memory over the image size, one column of panels a batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"latency_p50_ms": "latency, ms", "gflop_per_s": "GFLOP/s", "peak_memory_mb": "peak memory, MB"}
    batches = sorted({row["batch"] for row in rows})
    names = list(dict.fromkeys(row["backbone"] for row in rows))
    colours = {base: f"C{i}" for i, base in enumerate(dict.fromkeys(name.split("+")[0] for name in names))}
    figure = Figure(figsize=(5.5 * len(batches) + 2.5, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), len(batches), squeeze=False)
    for (field, label), line in zip(panels.items(), axes, strict=True):
        for axis, batch in zip(line, batches, strict=True):
            for name in names:
                points = [row for row in rows if row["backbone"] == name and row["batch"] == batch]
                sides, values = [p["size_px"] for p in points], [p[field] for p in points]
                style = "--" if name.endswith("+sequential") else "-"
                axis.plot(sides, values, style, marker="o", color=colours[name.split("+")[0]], label=name)
            if field == "gflop_per_s":
                axis.axhline(facts["matmul_peak_gflop_per_s"], color="grey", linestyle=":", label="matmul peak")
            axis.set(xscale="log", yscale="log", xlabel="image side, px", ylabel=label, title=f"batch {batch}")
            ticks = sorted({row["size_px"] for row in rows})
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(f"{facts['processor']}, {facts['threads']} threads, fp32", fontsize=10)
    figure.savefig(path, dpi=110)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    {"backbone": bench_backbone, "scan": bench_scan, "loader": bench_loader}[options.what](options)


if __name__ == "__main__":
    main()
