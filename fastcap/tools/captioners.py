"""Captioners side by side: image file to text in one process, warm, in turns; memory in processes of their own."""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from fastcap.data.image_files import find_images
from fastcap.pretrained import find_model
from fastcap.tools.baselines import architecture
from fastcap.tools.measure import Work, in_fresh_process, quantile_ms, time_in_turns
from fastcap.tools.systems import Spec, build, peak_mb
from fastcap.utils.errors import UserError

MAX_IMAGES = 8
METHOD = (
    "Image file to text, batch 1: reading and decoding the JPEG, resizing, the network, words. One process, all "
    "systems warm and taking turns, each for --seconds in all. Baselines: transformers, eager, fp32, random weights of "
    "the published architectures at their own image size, exactly 12 new tokens, images decoded by the same "
    "code as ours; steps are decoder passes. Ours write as many words as they please. params: tied ones counted once, "
    "what only training uses left out. file_mb (1e6 bytes): fp32 tensors of checkpoints and baselines, whole files of "
    "exports. peak_mb (1e6 bytes): high-water mark of resident memory of a fresh process that imports, loads and "
    "captions twice."
)


def measure(options: argparse.Namespace, report: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """Measure captioning systems by the options of ``fastcap bench captioners``, telling ``report`` what goes on.

    Yields:
        The table so far, after each measurement; one row a system.
    """
    with tempfile.TemporaryDirectory() as made:
        specs, images = select(options, Path(made))
        rows: dict[Spec, dict[str, Any]] = {}

        def start(spec: Spec) -> Work:
            report(f"{spec.label} ({specs.index(spec) + 1} of {len(specs)}): building and warming up")
            caption, rows[spec] = build(spec, options.threads)
            files = cycle(map(str, images))
            return lambda: caption(next(files))

        builders = {spec: functools.partial(start, spec) for spec in specs}
        for spec, seconds in time_in_turns(builders, options.seconds, options.rounds):
            measured = {"p50_ms": round(quantile_ms(seconds), 2), "p95_ms": round(quantile_ms(seconds, 0.95), 2)}
            rows[spec] |= {**measured, "peak_mb": rows[spec].get("peak_mb", ""), "runs": len(seconds)}
            report(f"{spec.label}: {measured['p50_ms']:g} ms, {len(seconds)} runs")
            yield list(rows.values())
        for spec in specs if options.memory else ():
            rows[spec]["peak_mb"] = round(in_fresh_process(peak_mb, spec, str(images[0]), options.threads), 1)
            report(f"{spec.label}: {rows[spec]['peak_mb']} MB")
            yield list(rows.values())


def select(options: argparse.Namespace, folder: Path) -> tuple[list[Spec], Sequence[Path]]:
    """Return the systems that options ask for, ours first, and image files; those drawn for this run in ``folder``."""
    for name in options.baselines:
        architecture(name)  # refuses one that is unknown
    baselines = [Spec("", None, name, beams) for name in options.baselines for beams in options.beams]
    images = find_images(options.images).files[:MAX_IMAGES] if options.images else draw_photographs(folder)
    return [*our_specs(options.models, options.num_steps), *baselines], images


def our_specs(paths: Sequence[str], steps: Sequence[int]) -> list[Spec]:
    """Name our systems: an export's folder stands for all of its files, a run's for its best checkpoint.

    Raises:
        UserError: If there is no such file.
    """
    specs = []
    for given in paths:
        for file in sorted(Path(given).glob("*.onnx")) or [find_model(given)]:
            if not file.is_file():
                raise UserError(f"--models {given}: no such model")
            specs += [Spec(path=str(file), num_steps=count) for count in steps or (None,)]
    return specs


def draw_photographs(folder: Path, count: int = 3) -> list[Path]:
    """Draw JPEG files of a photograph's size and detail, for a machine that has none at hand: blurred noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"noise_{number}.jpg" for number in range(count)]
    for path in paths:
        noise = Image.merge("RGB", [Image.effect_noise((500, 375), 90) for _ in "RGB"])
        noise.filter(ImageFilter.GaussianBlur(1)).save(path, quality=90)
    return paths
