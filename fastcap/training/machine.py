"""What a run settles with the machine before it starts: random seeds, and how memory is given to tensors on a CPU."""

from __future__ import annotations

import ctypes
import platform

import lightning as L

from fastcap.utils.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
_NEVER = 2**31 - 1


def seed_run(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, and those of the workers that load data.

    Raises:
        UserError: If the seed is out of range.
    """
    try:
        L.seed_everything(seed, workers=True, verbose=False)
    except ValueError as error:
        raise UserError(f"seed = {seed}: {error}") from error


def keep_freed_memory() -> bool:
    """Have the process keep the memory of freed tensors for the next ones, until it ends.

    glibc asks the kernel anew for every block above 32 MB and gives it back when it is freed, so that each page of a
    large activation is fetched and zeroed again at every step: half the time of a training step on features of 64
    images (218,000 page faults; experiments/LOG.md). The price is memory that other processes do not get back.

    Returns:
        Whether the C library took it; other libraries than glibc have their own ways, and are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _NEVER))
