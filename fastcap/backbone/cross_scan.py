"""The four-direction cross-scan over a patch grid (VMamba, arXiv 2401.10166).

Two walks cover the grid, row by row and column by column, and each is walked forwards and backwards, so that causal
scans let every patch see all others. Heads are shared out over the directions: right, left, down, up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastcap.backbone.routes import Routes, make_routes, scan_routes
from fastcap.backbone.scan import scan_reference

NUM_DIRECTIONS = 4


def direction_visits(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the patches, by raster index, in the order in which each direction comes to them. (4, N), N = H * W."""
    raster = torch.arange(height * width, device=device)
    columns = raster.view(height, width).t().reshape(-1)
    return torch.stack([raster, raster.flip(0), columns, columns.flip(0)])


def grid_scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk_size: int = 32) -> Tensor:
    """Scan a grid in four directions, the first quarter of the heads to the right, the others left, down and up.

    Args:
        x: Inputs times the step size. (B, H, W, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, H, W, heads)
        b: Input projections, the same from whatever direction a patch is reached. (B, H, W, S)
        c: Output projections. (B, H, W, S)
        chunk_size: Tokens a chunk, as in ``ssd_scan``.

    Returns:
        (B, H, W, heads, P)
    """
    _, height, width, heads, _ = x.shape
    # A traced tensor must not outlive its trace.
    prepare = _grid_routes if torch.compiler.is_compiling() else _cached_grid_routes
    routes = prepare(height, width, heads, chunk_size, x.device)
    y, _ = scan_routes(x.flatten(1, 3), log_decay.flatten(1), b.flatten(1, 2), c.flatten(1, 2), routes)
    return y.view(x.shape)


def grid_scan_reference(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute the same as ``grid_scan`` with the recurrence, token by token, all directions and heads at once.

    Args and result are those of ``grid_scan``.
    """
    batch, height, width, heads, _ = x.shape
    visits = direction_visits(height, width, x.device)
    x, log_decay = (t.flatten(1, 2).unflatten(2, (NUM_DIRECTIONS, -1)) for t in (x, log_decay))

    def walked(t: Tensor) -> Tensor:
        return torch.stack([t[:, way, i] for i, way in enumerate(visits)], dim=2).flatten(2, 3)

    b, c = (t.flatten(1, 2)[:, visits.t()] for t in (b, c))
    y, _ = scan_reference(walked(x), walked(log_decay), b, c)
    y = y.unflatten(2, (NUM_DIRECTIONS, -1))
    y = torch.stack([y[:, way.argsort(), i] for i, way in enumerate(visits)], dim=2)
    return y.reshape(batch, height, width, heads, -1)


def _grid_routes(height: int, width: int, heads: int, chunk_size: int, device: torch.device) -> Routes:
    return make_routes(direction_visits(height, width, device), heads, 1, chunk_size)


@lru_cache(maxsize=16)
def _cached_grid_routes(*args: Any) -> Routes:
    with torch.inference_mode(False):  # what inference made could not be trained with
        return _grid_routes(*args)
