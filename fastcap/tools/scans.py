"""The four-direction scan alone: its chunks beside the recurrence, token by token, ours and others'."""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fastcap.backbone.cross_scan import NUM_DIRECTIONS, grid_scan, grid_scan_reference
from fastcap.build import ConfigError
from fastcap.tools.measure import cpu_name, median_ms, time_interleaved
from fastcap.tools.sequential_scans import (
    mambapy_scans,
    one_after_another,
    selective_scan,
    selective_scan_indexed,
)

STATE = 16
BASELINES = {
    "speedup": "sequential",
    "speedup_over_published": "published_sequential",
    "speedup_over_indexed": "published_indexed",
    "speedup_over_mambapy": "mambapy_sequential",
    "speedup_over_mambapy_parallel": "mambapy_parallel",
}
UNTRAINED = {"mambapy_sequential"}  # minutes a pass: its loop indexes whole tensors, whose gradient is quadratic
ON_DEMAND = {"published_indexed"}  # a minute and more a pass in training: timed where it is named
CASES = {"forward": 1, "forward + backward": 32}  # images a pass


def measure_scans(
    side: int, width: int, head_dims: list[int], rounds: int, names: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict]:
    """Time the scan of a square grid in four directions, each direction with all of the width.

    Args:
        side: Patches a side of the grid.
        width: Channels of each direction.
        head_dims: Channels of a head, to be measured each.
        rounds: Interleaved rounds of timing.
        names: Forms to time; none named, all that take seconds.

    Returns:
        One row a form, head width and pass, and what held for all of them. A speed-up is over a sequential form of the
        same head width and pass: ``speedup`` over our own, all directions and heads in one step of its loop;
        ``speedup_over_published``, ``speedup_over_indexed`` and ``speedup_over_mambapy`` over those that go through one
        direction after another with a state a channel, and ``speedup_over_mambapy_parallel`` likewise over a parallel
        one; None where the other was not timed. Those know no heads: they are timed once for all head widths.

    Raises:
        ConfigError: If a form is unknown, or its package missing.
    """
    ours, others = our_forms(), other_forms()
    if unknown := [name for name in names if name not in ours | others]:
        raise ConfigError(f"no scan {unknown[0]!r}; choose from {', '.join(ours | others)}")
    ours, others = (
        {form: scan for form, scan in forms.items() if (form in names if names else form not in ON_DEMAND)}
        for forms in (ours, others)
    )
    works: dict[tuple[str, int, str], Callable[[], Any]] = {}
    for channels in head_dims:
        for name, batch in CASES.items():
            work, inputs = (_forward if name == "forward" else _forward_backward), _inputs(batch, side, width, channels)
            for form, scan in (ours | others if channels == head_dims[0] else ours).items():
                if name == "forward" or form not in UNTRAINED:
                    works[form, channels, name] = functools.partial(work, scan, inputs)
    times = {key: median_ms(seconds) for key, seconds in time_interleaved(works, rounds).items()}
    rows = []
    for channels, name in itertools.product(head_dims, CASES):
        keys = {form: (form, head_dims[0] if form in others else channels, name) for form in ours | others}
        found = {form: times[key] for form, key in keys.items() if key in times}
        for form, ms in found.items():
            speedups = {
                column: round(found[base] / ms, 2) if base in found else None for column, base in BASELINES.items()
            }
            row = {"form": form, "head_dim": channels, "pass": name, "batch": CASES[name], "ms": round(ms, 3)}
            rows.append(row | speedups)
    facts = {
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "tokens": side * side,
        "width_of_each_direction": width,
        "state": STATE,
        "rounds": rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mambapy": version("mambapy") if "mambapy_sequential" in others else None,
        "method": METHOD,
    }
    return rows, facts


def _inputs(batch: int, side: int, width: int, channels: int) -> list[Tensor]:
    heads = NUM_DIRECTIONS * width // channels
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, side, side, heads, channels, generator=generator)
    log_decay = -torch.rand(batch, side, side, heads, generator=generator).clamp_(min=1e-3)
    b, c = (torch.randn(batch, side, side, STATE, generator=generator) for _ in range(2))
    return [x, log_decay, b, c]


def _forward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.inference_mode():
        scan(*inputs)


def _forward_backward(scan: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    leaves = [t.detach().requires_grad_() for t in inputs]
    scan(*leaves).sum().backward()


def our_forms() -> dict[str, Callable[..., Tensor]]:
    """Our own forms by name."""
    return {
        "sequential": grid_scan_reference,
        "chunks": grid_scan,
        "dual": functools.partial(grid_scan, chunk_size=1 << 30),  # one chunk
    }


def other_forms() -> dict[str, Callable[..., Tensor]]:
    """Others' forms by name, the same function of the same inputs; mambapy's where it is installed."""
    scans = {
        "published_sequential": selective_scan,
        "published_indexed": selective_scan_indexed,
        **mambapy_scans(),
    }
    return {name: functools.partial(one_after_another, scan) for name, scan in scans.items()}


METHOD = (
    "fp32, eager; medians over interleaved rounds in one process after two warm-up passes. sequential: our recurrence, "
    "all directions and heads in one step of the loop over tokens. published_sequential: Mamba's selective scan, "
    "written from arXiv 2312.00752, algorithm 2, with a state a channel, each direction after another. "
    "published_indexed: as its published reference code runs it, tokens indexed out of whole tensors. mambapy_*: "
    "mambapy's own code, each direction after another; its sequential form is not trained, as its gradient takes "
    "minutes a pass. chunks: ours. dual: ours in a single chunk, quadratic in tokens."
)
