"""What is measured and how: interleaved timings, counted arithmetic, peak memory in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastcap.utils.prepacking import PackedLinear, packs

Work = Callable[[], Any]
_SLICE = 0.2  # seconds that one round gives to a quick piece of work


def time_interleaved(works: Mapping[Any, Work], rounds: int) -> dict[Any, list[float]]:
    """Time pieces of work in turns, so that a machine that slows down slows all of them.

    Each is run once to warm up; then every round runs each of them, the quick ones several times.

    Args:
        works: What to time, by key.
        rounds: How often.

    Returns:
        Seconds of every run but the first, by key.
    """
    times: dict[Any, list[float]] = {key: [] for key in works}
    repeats = {}
    for key, work in works.items():
        work()
        repeats[key] = max(1, min(20, int(_SLICE / max(_seconds(work), 1e-6))))
    for _ in range(rounds):
        for key, work in works.items():
            times[key] += [_seconds(work) for _ in range(repeats[key])]
    return times


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return 1e3 * statistics.median(seconds)


def matmul_work(size: int = 1024) -> tuple[Work, float]:
    """Return a square fp32 matrix product to time beside the models, and its GFLOP.

    Of torch's own product and oneDNN's with packed weights the faster one here: MKL is slow on processors not Intel's.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    works: list[Work] = [lambda: a @ b]
    if packs(b):
        works.append(functools.partial(PackedLinear(b, None, None, size), a))
    times = time_interleaved(dict(enumerate(works)), 2)
    return works[min(times, key=lambda number: min(times[number]))], 2e-9 * size**3


def count_gflop(model: nn.Module, images: Tensor) -> float:
    """Count the GFLOP of one forward pass: matrix products, convolutions and attention, not element-wise work."""
    # Attention as plain matrix products: the counter knows no fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 1e9


def peak_memory_mb(build: Callable[..., nn.Module], arguments: tuple[Any, ...], batch: int, size: int) -> float:
    """Measure how far one forward pass raises this process's resident memory above the loaded model, in MB.

    Only in a fresh process is this honest: memory that was freed stays resident and hides what comes later. NaN where
    the system does not tell (other than Linux).
    """
    model = build(*arguments).eval()
    with torch.inference_mode():
        model(torch.randn(1, 3, 32, 32))  # loads what libraries load at first use
        images = torch.randn(batch, 3, size, size)
        _give_back_freed_memory()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the peak so far
        except OSError:
            return float("nan")
        before = _status_kb("VmRSS")
        model(images)
    return (_status_kb("VmHWM") - before) / 1024


def _give_back_freed_memory() -> None:
    """Have glibc return what was freed, so that it does not serve the next pass unseen; elsewhere do nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status_kb(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def in_fresh_processes(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], threads: int, modules: Sequence[str] = ()
) -> list[Any]:
    """Call a function once in a new process for each tuple of arguments, one at a time.

    ``modules`` are imported once, in a process that does nothing else and of which the others are copies (on Windows
    each imports them anew).
    """
    method = "forkserver" if sys.platform != "win32" else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__, *modules])
    with ProcessPoolExecutor(
        1, context, initializer=torch.set_num_threads, initargs=(threads,), max_tasks_per_child=1
    ) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return f"{os.cpu_count()} cores"
