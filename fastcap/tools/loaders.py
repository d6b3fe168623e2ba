"""How many images a second loaders deliver: a folder of JPEGs, the pixel cache, and shards, beside training's need."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcap.build import ConfigError
from fastcap.data import CocoCaptions, DataError
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.streaming import StreamingCaptions
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.tools.measure import cpu_name

KINDS = ("folder", "cached", "shards", "shards-jpeg")
_QUALITY = 95
_FEWEST = 256  # images of one measurement, the epoch repeated where it has fewer


def measure_loaders(
    root: Path,
    annotations: str,
    num_images: int,
    size: int,
    batch_size: int,
    workers: Sequence[int],
    kinds: Sequence[str],
    rounds: int,
    consumed: Mapping[str, float],
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure every kind of loader at every number of workers, in turns.

    Args:
        root: A caption set in COCO's format.
        annotations: Its JSON, below ``root``.
        num_images: Images to use at most.
        size: Side of the square images, in pixels.
        batch_size: Images of a batch.
        workers: Numbers of worker processes.
        kinds: Of KINDS.
        rounds: Interleaved rounds.
        consumed: Images a second that training takes, by the name of what trains.
        report: Told what goes on.

    Returns:
        One row a kind and number of workers, and what held for all of them.

    Raises:
        ConfigError: If there is no such kind.
        DataError: If the set cannot be read or has fewer images than a batch.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"no loader {unknown[0]!r}; choose from {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="fastcap-loaders-") as folder:
        loaders: dict[tuple[str, int], Any] = {}
        facts: dict[str, Any] = {"bytes_per_image": {}}
        for kind in kinds:
            for count in workers:
                data = _module(kind, root, annotations, num_images, size, batch_size, count, Path(folder))
                loaders[kind, count] = loader = data.train_dataloader()
                report(f"{kind}, {count} workers: {len(loader)} batches of {batch_size}")
            facts["bytes_per_image"][kind] = _bytes_per_image(kind, data, Path(folder), size)
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
        works: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
        for number in range(-1, rounds):  # the first round starts workers and fills the page cache
            for key, loader in loaders.items():
                images, seconds, work = _epoch(loader)
                if number >= 0:
                    rates[key].append(images / seconds)
                    works[key].append(1e3 * work / images)
    rows = []
    for (kind, count), found in rates.items():
        rate = statistics.median(found)
        row: dict[str, Any] = {"loader": kind, "workers": count, "images_per_s": round(rate, 1)}
        row |= {"slowest": round(min(found), 1), "fastest": round(max(found), 1)}
        row["cpu_ms_per_image"] = round(statistics.median(works[kind, count]), 3) if count == 0 else ""
        row |= {f"x {name}": round(rate / need, 2) for name, need in consumed.items()}
        rows.append(row)
    facts |= {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "images": len(data.records("train").image_ids),
        "size_px": size,
        "batch_size": batch_size,
        "rounds": rounds,
        "consumed_images_per_s": dict(consumed),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "method": "Whole epochs of the training loader with flips, five captions an image, nothing consuming them; "
        "files in the page cache; median over interleaved rounds. CPU time is known without workers only. "
        "Workers share the cores with training.",
    }
    return rows, facts


def _module(
    kind: str, root: Path, annotations: str, num_images: int, size: int, batch_size: int, workers: int, folder: Path
) -> CaptionDataModule:
    files = {"train": annotations}
    if kind.startswith("shards"):
        source: Any = StreamingCaptions(
            root,
            str(folder / "shards"),
            size,
            annotations=files,
            max_images=num_images,
            quality=_QUALITY if kind == "shards-jpeg" else None,
        )
    else:
        source = CocoCaptions(root, annotations=files, max_images=num_images)
    return CaptionDataModule(
        source,
        train_word_tokenizer,
        image_size=size,
        batch_size=batch_size,
        cache=kind == "cached",
        cache_dir=folder / "pixels",
        horizontal_flip=True,
        num_workers=workers,
    )


def _epoch(loader: Any) -> tuple[int, float, float]:
    """Go through a loader; returns images, seconds and this process's seconds of CPU."""
    images, started, worked = 0, time.perf_counter(), time.process_time()
    while images < _FEWEST:
        images += sum(len(batch) for batch in loader)
    return images, time.perf_counter() - started, time.process_time() - worked


def _bytes_per_image(kind: str, data: CaptionDataModule, folder: Path, size: int) -> int:
    records: Any = data.records("train")
    if kind == "folder":
        return int(np.mean([path.stat().st_size for path in records.paths]))
    if kind == "cached":
        return 3 * size**2
    about = json.loads((Path(records.reader.place) / "fastcap.json").read_text(encoding="utf-8"))
    return sum(size for _, size, _ in about["shards"]) // max(sum(count for *_, count in about["shards"]), 1)


def consumption(runs: Sequence[Path]) -> dict[str, float]:
    """Read how many images a second runs took, from their ``metrics.csv`` (``time/images_per_s``).

    Raises:
        DataError: If a run's folder does not tell.
    """
    found = {}
    for run in runs:
        try:
            with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
                values = [row.get("time/images_per_s") for row in csv.DictReader(file)]
            found[run.name] = statistics.median(float(value) for value in values if value)
        except (OSError, ValueError, statistics.StatisticsError) as error:
            raise DataError(f"{run / 'metrics.csv'}: no time/images_per_s ({error})") from error
    return found
