"""Counter-based random numbers: each follows from what it is drawn for, in whatever process and order that comes.

A generator's state would make a resumed run, or one on more processes, draw other masks than an unbroken one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def counter_uniform(seed: int, epoch: int, stream: int, counters: np.ndarray) -> np.ndarray:
    """Draw uniform numbers that depend on nothing but the arguments: no generator, no state.

    Two rounds of the SplitMix64 mixer (Steele et al. 2014) over seed, epoch, stream and counter.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from zero.
        stream: Number of the use (one for flips, another for crops), so that uses are independent.
        counters: Non-negative integers, one for each draw; any shape.

    Returns:
        Numbers in [0, 1), float64, of the shape of ``counters``.
    """
    key = np.uint64(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0])
    with np.errstate(over="ignore"):
        state = _mix(_mix(counters.astype(np.uint64) + np.uint64(1)) ^ key)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class ImageRandom:
    """Draw uniform numbers for the captions of a batch, each following from (seed, epoch, image, caption).

    An image gets the same numbers in whatever batch, process or order it comes. Each call draws anew.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from zero.
        image_ids: Identifiers. (B,)
    """

    _FIRST_STREAM = 1000  # those of the data set are below

    def __init__(self, seed: int, epoch: int, image_ids: Tensor) -> None:
        self.seed, self.epoch = seed, epoch
        self.image_ids = image_ids.cpu().numpy().astype(np.uint64)
        self._calls = 0

    def rand(self, rows: int, columns: int) -> Tensor:
        """Draw for every caption, ``rows`` / B of each image one after the other.

        Returns:
            Numbers in [0, 1) on the CPU, float32. (rows, columns)
        """
        captions = np.arange(rows // len(self.image_ids), dtype=np.uint64)
        with np.errstate(over="ignore"):
            keys = _mix(_mix(self.image_ids)[:, None] + captions).reshape(-1, 1)
            counters = keys + np.arange(columns, dtype=np.uint64)
        drawn = counter_uniform(self.seed, self.epoch, self._FIRST_STREAM + self._calls, counters)
        self._calls += 1
        # Down to the 24 bits that a float32 holds: rounding up would give 1.
        return torch.from_numpy((np.floor(drawn * 2.0**24) * 2.0**-24).astype(np.float32))


RandomSource = torch.Generator | ImageRandom


def uniform(source: RandomSource, rows: int, columns: int) -> Tensor:
    """Draw numbers in [0, 1) on the CPU. (rows, columns)."""
    if isinstance(source, ImageRandom):
        return source.rand(rows, columns)
    return torch.rand(rows, columns, generator=source)


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Mix a position of the run into one 63-bit seed (SplitMix64's finaliser, Steele et al. 2014)."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, batch, rank):
            state = _mix(state + np.uint64(part))
    return int(state[0] >> np.uint64(1))
