"""How things are measured: timings taken in turns, arithmetic counted, memory in a process of its own."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from timeit import timeit
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], Any]
Key = TypeVar("Key")

MAX_RUNS = 200  # of one piece of work
_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "transformers", "onnxruntime", "numpy", "pillow")


def time_in_turns(
    builders: Mapping[Key, Callable[[], Work]], seconds: float, rounds: int
) -> Iterator[tuple[Key, list[float]]]:
    """Time pieces of work in turns, so that a machine that slows down slows all of them.

    In the first round each is built and run to warm up (once more where that was quick). Every round gives each its
    share of its time; a slow one runs at least once in all, a quick one at most ``MAX_RUNS`` times.

    Args:
        builders: What makes each piece of work, by key.
        seconds: Time of the timed runs of each, in all rounds together.
        rounds: Turns.

    Yields:
        After each share a key, and the seconds of all its timed runs so far.
    """
    works: dict[Key, Work] = {}
    times: dict[Key, list[float]] = {key: [] for key in builders}
    for turn in range(1, rounds + 1):
        for key, build in builders.items():
            own = times[key]
            if key not in works:
                works[key] = build()
                if timeit(works[key], number=1) < seconds / 4:
                    works[key]()
            while not own or (sum(own) < seconds * turn / rounds and len(own) < MAX_RUNS * turn / rounds):
                own.append(timeit(works[key], number=1))
            yield key, own


def quantile_ms(seconds: list[float], share: float = 0.5) -> float:
    """Return a quantile in milliseconds, the median by default."""
    return 1e3 * float(np.quantile(seconds, share))


def matmul_gflop_per_s(size: int = 1024) -> float:
    """Measure the best rate of a square fp32 matrix product, to compare models and machines with.

    Of torch's own product and oneDNN's, as a convolution, the faster one: MKL is slow on processors not Intel's.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    works: list[Work] = [lambda: a @ b, lambda: F.conv2d(a[None, :, :, None], b[:, :, None, None])]
    return 2e-9 * size**3 / min(timeit(work, number=1) for work in works for _ in range(10))


def count_gflop(model: nn.Module, images: Tensor) -> float:
    """Count the GFLOP of one forward pass: matrix products, convolutions and attention, not element-wise work."""
    # Attention as plain matrix products: the counter knows no fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 1e9


def in_fresh_process(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a new process: memory that was freed in this one stays resident and hides what comes later."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine(threads: int) -> dict[str, Any]:
    """Say what figures were measured on, and set torch's threads."""
    torch.set_num_threads(threads)
    facts: dict[str, Any] = {"processor": f"{os.cpu_count()} cores", "cores": os.cpu_count(), "threads": threads}
    try:
        with open("/proc/cpuinfo") as file:
            told = dict(line.split(":", 1) for line in file if ":" in line)
        told = {name.strip(): value.strip() for name, value in told.items()}
        facts["processor"] = told.get("model name", facts["processor"])
        facts["flags"] = [flag for flag in _FLAGS if flag in told.get("flags", "").split()]
        facts["load_before"] = round(os.getloadavg()[0], 2)
    except OSError:
        pass
    facts |= {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts | {"matmul_gflop_per_s": round(matmul_gflop_per_s(), 1)}
