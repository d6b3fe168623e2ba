"""Measure: `fastcap bench backbone | scan | captioners | growth | loader | cost`; tables, plots, facts (JSON)."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from fastcap.cli import UserError, one_clear_error
from fastcap.tools.arguments import parse_arguments


def bench_backbone(arguments: argparse.Namespace) -> Path:
    """Run the backbones' benchmark; returns the folder with ``backbone.{csv,png,json}``."""
    import torch

    from fastcap.reporting.backbones import draw_backbones
    from fastcap.tools.backbones import default_backbones, measure

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
    draw_backbones(folder / "backbone.png", rows, facts)
    print_rows(rows, facts)
    print(
        f"Table    {folder / 'backbone.csv'}\nPlot     {folder / 'backbone.png'}\nFacts    {folder / 'backbone.json'}"
    )
    return folder


def bench_scan(arguments: argparse.Namespace) -> Path:
    """Run the scan's benchmark; returns the folder with ``scan.{csv,json}``."""
    import torch

    from fastcap.tools.scans import measure_scans

    wrong = [channels for channels in arguments.head_dims if arguments.width % channels]
    if wrong:
        raise UserError(f"--head-dims {wrong[0]} does not divide --width {arguments.width}")
    torch.set_num_threads(arguments.threads)
    rows, facts = measure_scans(arguments.side, arguments.width, arguments.head_dims, arguments.rounds, arguments.forms)
    folder = write(arguments.out, "scan", rows, facts)
    print(
        f"{facts['processor']}, {facts['threads']} threads; {facts['tokens']} tokens x {arguments.width} x 4 directions"
    )
    over = {
        "speedup": "sequential",
        "speedup_over_published": "published",
        "speedup_over_indexed": "its code",
        "speedup_over_mambapy": "mambapy",
        "speedup_over_mambapy_parallel": "its parallel",
    }
    print(f"{'':<54}times as fast as\n{'form':<21}{'head':>5}{'pass':>20}{'batch':>7}{'ms':>11}", end="")
    print("".join(f"{name:>14}" for name in over.values()))
    for row in rows:
        speedups = "".join(f"{'-' if row[column] is None else format(row[column], '.1f'):>14}" for column in over)
        print("{form:<21}{head_dim:>5}{pass:>20}{batch:>7}{ms:>11.2f}".format(**row) + speedups)
    print(f"Table    {folder / 'scan.csv'}\nFacts    {folder / 'scan.json'}")
    return folder


def bench_loader(arguments: argparse.Namespace) -> Path:
    """Run the loaders' benchmark; returns the folder with ``loader.{csv,json}``."""
    from fastcap.tools.loaders import consumption, measure_loaders

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


def bench_captioners(arguments: argparse.Namespace) -> Path:
    """Run the captioners' benchmark; returns the folder with ``bench.{csv,png,json}``."""
    from fastcap.reporting.latency import draw_latency
    from fastcap.tools.captioners import measure
    from fastcap.tools.headline import read_table, text_table
    from fastcap.tools.selection import select

    with tempfile.TemporaryDirectory() as made:
        specs, images = select(arguments, Path(made))
        rows, facts = measure(
            specs,
            images,
            threads=arguments.threads,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            memory=not arguments.no_memory,
            report=lambda line: print(line, file=sys.stderr),
        )
    folder = write(arguments.out, "bench", rows, facts)
    table = read_table(folder / "bench.csv")
    draw_latency(folder / "bench.png", table, _machine(facts))
    print(f"{_machine(facts)}\n{text_table(table)}")
    print(f"Table    {folder / 'bench.csv'}\nPlot     {folder / 'bench.png'}\nFacts    {folder / 'bench.json'}")
    return folder


def bench_decoding(arguments: argparse.Namespace) -> Path:
    """Run the decoders' benchmark; returns the folder with ``decoding.{csv,json}``."""
    from fastcap.tools.decoding import measure_decoding
    from fastcap.tools.selection import find_images

    rows, facts = measure_decoding(
        arguments.models,
        find_images(arguments.images, Path(), arguments.max_images) if arguments.images else arguments.max_images,
        refinements=arguments.refinements,
        num_beams=arguments.beams,
        threads=arguments.threads,
        rounds=arguments.rounds,
    )
    folder = write(arguments.out, "decoding", rows, facts)
    print(_machine(facts))
    for row in rows:
        told = "{num_beams} beams" if row["num_beams"] else "{num_steps} steps, {num_lengths} lengths"
        print(("{decode_ms:>9.2f} ms {p95_ms:>9.2f} ms p95 {words:>6} words  " + told + "  {checkpoint}").format(**row))
    print(f"Table    {folder / 'decoding.csv'}\nFacts    {folder / 'decoding.json'}")
    return folder


def bench_growth(arguments: argparse.Namespace) -> Path:
    """Run the benchmark of growth; returns the folder with ``growth.{csv,png,json}``."""
    from fastcap.build import load_checkpoint
    from fastcap.reporting.latency import draw_growth
    from fastcap.tools.growth import measure_growth
    from fastcap.tools.random_weights import write_random

    with tempfile.TemporaryDirectory() as made:
        loaded = load_checkpoint(arguments.model or write_random(Path(made) / "random.ckpt"))
    rows, facts = measure_growth(
        loaded,
        arguments.sizes,
        arguments.steps,
        arguments.batches,
        threads=arguments.threads,
        rounds=arguments.rounds,
        report=lambda line: print(line, file=sys.stderr),
    )
    folder = write(arguments.out, "growth", rows, facts)
    draw_growth(folder / "growth.png", rows, facts["fits"], _machine(facts))
    print(_machine(facts))
    for row in rows:
        print("{axis:<8}{value:>6}{p50_ms:>12.2f} ms".format(**row))
    for axis, found in facts["fits"].items():
        print(f"{axis}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    print(f"Table    {folder / 'growth.csv'}\nPlot     {folder / 'growth.png'}\nFacts    {folder / 'growth.json'}")
    return folder


def bench_cost(arguments: argparse.Namespace) -> Path:
    """Estimate what recipes take; returns the folder with ``cost.{csv,json}``."""
    from fastcap.tools.cost import Assumptions, describe, estimate, facts

    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Assumptions)}
    assumptions, overrides = Assumptions(**given), arguments.overrides or ["experiment=coco_base"]
    costs = estimate(overrides, assumptions)
    rows = [
        {"stage": stage} | {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(cost).items()}
        for stage, cost in costs.items()
    ]
    folder = write(arguments.out, "cost", rows, facts(overrides, assumptions))
    print(" ".join(overrides))
    for stage, cost in costs.items():
        print(f"{stage}\n{describe(cost, assumptions)}")
    if len(costs) > 1:
        print(f"together {sum(cost.hours for cost in costs.values()):.1f} hours")
    print(f"Table    {folder / 'cost.csv'}\nFacts    {folder / 'cost.json'}")
    return folder


def write_random_checkpoint(arguments: argparse.Namespace) -> Path:
    """Write a checkpoint with random weights."""
    from fastcap.tools.random_weights import DEFAULTS, write_random

    path = write_random(arguments.file, arguments.overrides or DEFAULTS)
    print(path)
    return path


def make_table(arguments: argparse.Namespace) -> None:
    """Print the captioners' table as Markdown, or put it into the README."""
    from fastcap.tools.headline import TableError, markdown, update_readme

    try:
        if arguments.readme:
            update_readme(arguments.readme, arguments.csv)
        else:
            print(markdown(arguments.csv), end="")
    except TableError as error:
        raise UserError(str(error)) from error


def _machine(facts: dict[str, Any]) -> str:
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] > 1)
    return f"{facts['processor']}, {threads}, matmul {facts['matmul_gflop_per_s']} GFLOP/s"


COMMANDS = {
    "backbone": bench_backbone,
    "scan": bench_scan,
    "loader": bench_loader,
    "captioners": bench_captioners,
    "growth": bench_growth,
    "decoding": bench_decoding,
    "cost": bench_cost,
    "random": write_random_checkpoint,
    "table": make_table,
}


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    COMMANDS[options.what](options)


if __name__ == "__main__":
    main()
