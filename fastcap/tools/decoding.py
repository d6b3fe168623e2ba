"""Decoding alone, batch 1: refinement with few and many steps beside the autoregressive twin, interleaved."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from fastcap.build import LoadedCheckpoint, build_datamodule, load_checkpoint
from fastcap.data.pixels import decode_image
from fastcap.serving.eager import prepare_model
from fastcap.tools.captioners import machine
from fastcap.tools.measure import Work, matmul_work, median_ms, time_interleaved

METHOD = (
    "Eager as it serves (weights packed), fp32, batch 1: from the image memory to token ids, length prediction "
    "included, encoder left out; a round captions every image with every setting in turns; quantiles over images and "
    "rounds."
)


def measure_decoding(
    checkpoints: Sequence[Path],
    images: Sequence[Path] | int,
    *,
    refinements: Sequence[tuple[int, int]],
    num_beams: Sequence[int],
    threads: int,
    rounds: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time the decoders of checkpoints on the same photographs.

    Args:
        checkpoints: Captioners, of either kind.
        images: Photographs; or how many validation images of the first checkpoint's own data to take.
        refinements: Steps and length candidates to try where a decoder refines.
        num_beams: Beams to try where a decoder writes word after word.
        threads: Torch's threads.
        rounds: Interleaved rounds.

    Returns:
        One row a setting, and what held for all of them.
    """
    torch.set_num_threads(threads)
    works: dict[Any, Work] = {}
    captioners = {path: load_checkpoint(path) for path in checkpoints}
    with torch.inference_mode():
        for path, loaded in captioners.items():
            size = loaded.image_size
            prepare_model(loaded.model, size)
            encoded = [loaded.model.encode(pixels) for pixels in _read(images, size, captioners[checkpoints[0]])]
            causal = loaded.model.decoder.causal
            for setting in _settings(causal, refinements, num_beams):
                model = copy.copy(loaded.model)
                if causal:
                    model.refinement = copy.copy(model.refinement)
                    model.refinement.num_beams = setting["num_beams"]
                for number, image in enumerate(encoded):
                    key = (str(path), "word after word" if causal else "refinement", *setting.items(), number)
                    works[key] = functools.partial(model.decode, image, **({} if causal else setting))
        words = {key: int(work().lengths[0]) for key, work in works.items()}
        matmul, gflop = matmul_work()
        times = time_interleaved(works | {"matmul": matmul}, rounds)
    rows = []
    for group in dict.fromkeys(key[:-1] for key in works):
        keys = [key for key in works if key[:-1] == group]
        seconds = np.concatenate([times[key] for key in keys])
        setting = dict(group[2:])
        rows.append(
            {"checkpoint": group[0], "decoding": group[1]}
            | {name: setting.get(name, "") for name in ("num_steps", "length_beam", "num_beams")}
            | {"decode_ms": round(median_ms(list(seconds)), 3), "p95_ms": round(1e3 * np.quantile(seconds, 0.95), 3)}
            | {"words": round(float(np.mean([words[key] for key in keys])), 2), "images": len(keys)}
        )
    peak = round(gflop / min(times["matmul"]), 1)
    return rows, {**machine(threads), "matmul_gflop_per_s": peak, "rounds": rounds, "method": METHOD}


def _read(images: Sequence[Path] | int, size: int, first: LoadedCheckpoint) -> list[torch.Tensor]:
    """Read images, uint8 (1, 3, size, size) each."""
    if isinstance(images, int):
        config = OmegaConf.create(first.config)
        assert isinstance(config, DictConfig)
        records = build_datamodule(config, first.tokenizer).records("val")
        pixels = [records.load_image(number, size) for number in range(min(images, len(records.image_ids)))]
    else:
        pixels = [decode_image(file, size) for file in images]
    return [torch.tensor(each).permute(2, 0, 1).unsqueeze(0) for each in pixels]


def _settings(causal: bool, refinements: Sequence[tuple[int, int]], num_beams: Sequence[int]) -> list[dict[str, int]]:
    if causal:
        return [{"num_beams": beams} for beams in num_beams]
    return [{"num_steps": steps, "length_beam": lengths} for steps, lengths in refinements]
