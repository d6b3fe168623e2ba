"""Measure: `fastcap bench backbone | captioners | decoding`; tables (CSV) and facts (JSON)."""

from __future__ import annotations

import argparse
import csv
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
    """Run the backbones' benchmark; returns the folder with ``backbone.{csv,json}``."""
    import torch

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
    print_rows(rows, facts)
    print(f"Table    {folder / 'backbone.csv'}\nFacts    {folder / 'backbone.json'}")
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
    """Run the captioners' benchmark; returns the folder with ``bench.{csv,json}``."""
    from fastcap.reporting.tables import markdown_table, speed_lines
    from fastcap.tools.captioners import measure
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
    print(f"{_machine(facts)}\n")
    print(markdown_table(speed_lines([{name: str(value) for name, value in row.items()} for row in rows])))
    print(f"Table    {folder / 'bench.csv'}\nFacts    {folder / 'bench.json'}")
    return folder


def bench_decoding(arguments: argparse.Namespace) -> Path:
    """Run the decoders' benchmark; returns the folder with ``decoding.{csv,json}``."""
    from fastcap.tools.decoding import measure_decoding
    from fastcap.tools.selection import choose_images

    rows, facts = measure_decoding(
        arguments.models,
        choose_images(arguments.images, Path(), arguments.max_images) if arguments.images else arguments.max_images,
        refinements=arguments.refinements,
        num_beams=arguments.beams,
        threads=arguments.threads,
        rounds=arguments.rounds,
    )
    folder = write(arguments.out, "decoding", rows, facts)
    print(_machine(facts))
    for row in rows:
        told = "{num_beams} beams" if row["num_beams"] else "{num_steps} steps, {length_beam} lengths"
        print(("{decode_ms:>9.2f} ms {p95_ms:>9.2f} ms p95 {words:>6} words  " + told + "  {checkpoint}").format(**row))
    print(f"Table    {folder / 'decoding.csv'}\nFacts    {folder / 'decoding.json'}")
    return folder


def _machine(facts: dict[str, Any]) -> str:
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] > 1)
    return f"{facts['processor']}, {threads}, matmul {facts['matmul_gflop_per_s']} GFLOP/s"


COMMANDS = {
    "backbone": bench_backbone,
    "captioners": bench_captioners,
    "decoding": bench_decoding,
}


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    COMMANDS[options.what](options)


if __name__ == "__main__":
    main()
