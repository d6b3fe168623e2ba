"""The four-direction scan alone: its dual form and its chunks beside the recurrence, token by token."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastcap.backbone import cross_scan
from fastcap.backbone.scan import scan_reference
from fastcap.benchmark.measure import cpu_name, median_ms, time_interleaved

STATE = 16
CASES = {"forward": 1, "forward + backward": 32}  # images a pass


def measure_scans(side: int, width: int, head_dims: list[int], rounds: int) -> tuple[list[dict[str, Any]], dict]:
    """Time the scan of a square grid in four directions, each direction with all of the width.

    Args:
        side: Patches a side of the grid.
        width: Channels of each direction.
        head_dims: Channels of a head, to be measured each.
        rounds: Interleaved rounds of timing.

    Returns:
        One row a form, head width and pass, and what held for all of them. ``speedup`` is over the sequential form of
        the same row's head width and pass, timed in the same rounds.
    """
    works: dict[tuple[str, int, str], Callable[[], Any]] = {}
    for channels in head_dims:
        for name, batch in CASES.items():
            inputs = _inputs(batch, side, width, channels)
            for form, scan in FORMS.items():
                work = _forward if name == "forward" else _forward_backward
                works[form, channels, name] = functools.partial(work, scan, inputs)
    times = {key: median_ms(seconds) for key, seconds in time_interleaved(works, rounds).items()}
    rows = [
        {
            "form": form,
            "head_dim": channels,
            "pass": name,
            "batch": CASES[name],
            "ms": round(ms, 3),
            "speedup": round(times["sequential", channels, name] / ms, 2),
        }
        for (form, channels, name), ms in times.items()
    ]
    facts = {
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "tokens": side * side,
        "width_of_each_direction": width,
        "state": STATE,
        "rounds": rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "method": "fp32, eager; medians over interleaved rounds in one process after two warm-up passes.",
    }
    return rows, facts


def _inputs(batch: int, side: int, width: int, channels: int) -> list[Tensor]:
    heads = cross_scan.NUM_DIRECTIONS * width // channels
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, side, side, heads, channels, generator=generator)
    log_decay = -torch.rand(batch, side, side, heads, generator=generator)
    b, c = (torch.randn(batch, side, side, STATE, generator=generator) for _ in range(2))
    return [x, log_decay, b, c]


def _sequential(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    def scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, **options: int) -> tuple[Tensor, Tensor]:
        return scan_reference(x, log_decay, b, c, num_backward=options["num_backward"])

    with mock.patch.object(cross_scan, "ssd_scan", scan):
        return cross_scan.grid_scan(x, log_decay, b, c, max_quadratic=0)


def _forward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.inference_mode():
        scan(*inputs)


def _forward_backward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    leaves = [t.detach().requires_grad_() for t in inputs]
    scan(*leaves).sum().backward()


FORMS: dict[str, Callable[..., Tensor]] = {
    "sequential": _sequential,
    "chunks": functools.partial(cross_scan.grid_scan, max_quadratic=0),
    "dual": functools.partial(cross_scan.grid_scan, max_quadratic=1 << 30),
}
