"""Decoding alone, batch 1: refinement with few and many steps beside an autoregressive decoder, in turns."""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fastcap.build import LoadedCheckpoint, build_datamodule, load_checkpoint
from fastcap.model import FastCap
from fastcap.tools.measure import Work, quantile_ms, time_in_turns

METHOD = (
    "Eager, fp32, batch 1: from the image memory to token ids, length prediction "
    "included, encoder left out; settings take turns, and each goes through the images; quantiles over all runs."
)


@torch.inference_mode()
def measure(options: argparse.Namespace, report: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """Time decoders of either kind by the options of ``fastcap bench decoding``, telling ``report`` what goes on.

    Yields:
        The table so far, after each measurement; one row a setting.
    """
    captioners = {path: load_checkpoint(path) for path in options.models}
    works: dict[Any, Callable[[], Work]] = {}
    rows: dict[Any, dict[str, Any]] = {}
    for path, loaded in captioners.items():
        size = loaded.image_size
        images = _read(captioners[options.models[0]], options.max_images, size)
        memories = [loaded.model.encode(pixels) for pixels in images]
        causal = loaded.model.decoder.causal
        settings: list[dict[str, int]] = (
            [{"num_beams": beams} for beams in options.beams]
            if causal
            else [{"num_steps": steps, "length_beam": lengths} for steps, lengths in options.refinements]
        )
        for setting in settings:
            key = (str(path), *setting.items())
            about = {"checkpoint": str(path), "decoding": "autoregressive" if causal else "refinement"}
            rows[key] = about | {name: setting.get(name, "") for name in ("num_steps", "length_beam", "num_beams")}
            works[key] = functools.partial(_decode_in_turns, loaded.model, memories, setting)
    done: dict[Any, dict[str, Any]] = {}
    for key, seconds in time_in_turns(works, options.seconds, options.rounds):
        measured = {"decode_ms": round(quantile_ms(seconds), 3), "p95_ms": round(quantile_ms(seconds, 0.95), 3)}
        done[key] = rows[key] | measured | {"runs": len(seconds)}
        report(" ".join(f"{value}" for value in done[key].values() if value != ""))
        yield list(done.values())


def _decode_in_turns(model: FastCap, memories: Sequence[torch.Tensor], setting: dict[str, int]) -> Work:
    """Make work that decodes another image each time."""
    images = cycle(memories)
    if "num_beams" in setting:
        model = copy.copy(model)
        model.refinement = copy.copy(model.refinement)
        model.refinement.num_beams = setting["num_beams"]  # type: ignore[union-attr]
        return lambda: model.decode(next(images))
    return lambda: model.decode(next(images), setting.get("num_steps"), setting.get("length_beam"))


def _read(checkpoint: LoadedCheckpoint, limit: int, size: int) -> list[torch.Tensor]:
    """Read validation images of a checkpoint's own data, uint8 (1, 3, size, size) each."""
    config = OmegaConf.create(checkpoint.config)
    assert isinstance(config, DictConfig)
    records = build_datamodule(config, checkpoint.tokenizer).records("val")
    pixels = [records.load_image(number, size) for number in range(min(limit, len(records)))]
    return [torch.tensor(each).permute(2, 0, 1).unsqueeze(0) for each in pixels]
