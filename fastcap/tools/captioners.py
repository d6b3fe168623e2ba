"""Captioners side by side: image file to text, one process, interleaved, warm; memory in processes of their own."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastcap.tools.footprint import peak_mb
from fastcap.tools.measure import Work, cpu_name, matmul_work
from fastcap.tools.systems import Spec, build

MIN_RUNS, MAX_RUNS = 5, 200
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy", "pillow")
METHOD = (
    "Image file to text, batch 1: reading and decoding the JPEG, resizing, the network, words. One process, all "
    "systems warm and taking turns; each runs as often as its time budget allows, at least {least} times. p50 and p95 "
    "over all runs. Peers: transformers, eager, fp32, random weights of the published architectures, made-up "
    "words, exactly {tokens} new tokens, images decoded by the same code as ours; steps are decoder passes. Ours with "
    "random weights: length candidates around {tokens}; their twin writes {tokens} tokens, [EOS] among them; trained "
    "ones write as they please. params: tied ones counted once, what only training uses left out. file_mb (1e6 bytes): "
    "fp32 tensors of checkpoints and peers, whole folders of exports. peak_mb (1e6 bytes): high-water mark of resident "
    "memory of a fresh process that imports, loads and captions twice."
)


def measure(
    specs: Sequence[Spec],
    images: Sequence[Path],
    *,
    threads: int,
    seconds: float,
    rounds: int,
    memory: bool,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure captioning systems.

    Args:
        specs: What to measure.
        images: Image files, captioned in turns.
        threads: Threads of every system.
        seconds: Time budget of each system's timed runs.
        rounds: Turns that the runs are spread over.
        memory: Measure peak memory too, each system in a process of its own.
        report: Told what goes on.

    Returns:
        One row a system, and what held for all of them.
    """
    torch.set_num_threads(threads)
    load, started = os.getloadavg()[0], time.perf_counter()
    works: dict[Any, Work] = {}
    rows: dict[Spec, dict[str, Any]] = {}
    left_out = {}
    for number, spec in enumerate(specs):
        report(f"building and warming up {spec.label} ({number + 1} of {len(specs)})")
        try:
            system, rows[spec] = build(spec, threads)
            system.caption(str(images[0]))
        except Exception as error:
            if not spec.compiled:
                raise
            # What torch.compile cannot take on this machine (it needs a C++ compiler) is no reason to lose the rest.
            left_out[spec.label] = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
            report(f"left out {spec.label}: {left_out[spec.label]}")
            rows.pop(spec, None)
            continue
        works[spec] = _in_turns(system.caption, images)
    matmul, gflop = matmul_work()
    works["matmul"] = matmul
    torch.set_num_threads(threads)
    times = time_spread(works, seconds, rounds, report)
    peak = gflop / min(times.pop("matmul"))
    for spec, row in rows.items():
        milliseconds = 1e3 * np.array(times[spec])
        row["p50_ms"] = round(float(np.median(milliseconds)), 2)
        row["p95_ms"] = round(float(np.percentile(milliseconds, 95)), 2)
        row["peak_mb"], row["runs"] = float("nan"), len(milliseconds)
    works.clear()
    for spec, row in rows.items():
        if memory:
            report(f"measuring memory of {spec.label}")
            row["peak_mb"] = round(peak_mb(spec, str(images[0]), threads), 1)
    tokens = next((spec.num_tokens for spec in specs), 12)
    facts = {
        **machine(threads),
        "matmul_gflop_per_s": round(peak, 1),
        "load_before": round(load, 2),
        "seconds_in_all": round(time.perf_counter() - started),
        "left_out": left_out,
        "images": [_describe(path) for path in images],
        "method": METHOD.format(least=MIN_RUNS, tokens=tokens),
    }
    return [_ordered(row) for row in rows.values()], facts


def time_spread(
    works: Mapping[Any, Work], seconds: float, rounds: int, report: Callable[[str], None] = lambda line: None
) -> dict[Any, list[float]]:
    """Time pieces of work in turns, each as often as its time budget allows, its runs spread evenly over the rounds.

    Args:
        works: What to time, by key.
        seconds: Budget of each; a slow one still runs ``MIN_RUNS`` times, a quick one at most ``MAX_RUNS`` times.
        rounds: Turns.
        report: Told of each round.

    Returns:
        Seconds of every run but the first two, by key.
    """
    runs = {}
    for key, work in works.items():
        work()
        runs[key] = int(min(MAX_RUNS, max(MIN_RUNS, seconds / max(_timed(work), 1e-6))))
    times: dict[Any, list[float]] = {key: [] for key in works}
    for turn in range(rounds):
        report(f"timing, round {turn + 1} of {rounds}")
        for key, work in works.items():
            count = (turn + 1) * runs[key] // rounds - turn * runs[key] // rounds
            times[key] += [_timed(work) for _ in range(count)]
    return times


def _timed(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _in_turns(caption: Callable[[str], Any], images: Sequence[Path]) -> Work:
    count = -1

    def work() -> None:
        nonlocal count
        count += 1
        caption(str(images[count % len(images)]))

    return work


def _ordered(row: dict[str, Any]) -> dict[str, Any]:
    first = ("system", "runtime", "precision", "params", "file_mb", "p50_ms", "p95_ms", "peak_mb")
    return {key: row[key] for key in (*first, *(key for key in row if key not in first))}


def _describe(path: Path) -> str:
    with Image.open(path) as image:
        return f"{path.name} {image.width}x{image.height} {image.format}"


def machine(threads: int) -> dict[str, Any]:
    """Say what the figures were measured on."""
    facts: dict[str, Any] = {"processor": cpu_name(), "cores": os.cpu_count(), "threads": threads}
    try:
        with open("/proc/cpuinfo") as file:
            line = next((line for line in file if line.startswith("flags")), "")
        facts["flags"] = [flag for flag in _FLAGS if flag in line.split()]
    except OSError:
        facts["flags"] = []
    facts["python"], facts["system"] = platform.python_version(), platform.platform()
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def write_photographs(folder: Path, count: int = 3, side: tuple[int, int] = (500, 375)) -> list[Path]:
    """Draw JPEG files of a photograph's size and detail, for a machine that has none at hand: blurred noise."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    paths = []
    for number in range(count):
        width, height = side
        picture = np.zeros((height, width, 3))
        for scale in (64, 16, 4, 1):  # less and less, of finer and finer
            coarse = chance.integers(0, 256, (height // scale + 1, width // scale + 1, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC)
            picture += np.asarray(smooth) * scale**0.5
        picture *= 255 / picture.max()
        path = folder / f"noise_{number}.jpg"
        Image.fromarray(picture.astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths
