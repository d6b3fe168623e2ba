"""Selective state-space scans in plain torch: of sequences, and of a patch grid in four directions.

The recurrence, per head with a scalar decay (Mamba-2 / SSD, Dao and Gu 2024, arXiv 2405.21060):

    h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T        h is (P, S): P head channels, S states
    y_t = h_t c_t

``x`` is already multiplied by the step size dt, and ``log_decay`` is dt * a with a < 0. ``scan_reference`` is the
recurrence itself, token by token, to compare against and never to train with; ``ssd_scan`` is the same function as
matrix products over chunks of tokens, with a gradient of its own.

``grid_scan`` is the cross-scan (VMamba, arXiv 2401.10166). It walks the grid row by row and column by column, forwards
and backwards, so that causal scans let every patch see all others. Heads are shared out over the directions: right,
left, down, up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastcap.backbone.routes import Routes, make_routes, scan_routes

NUM_DIRECTIONS = 4


def scan_reference(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the recurrence one token at a time.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections; each group serves heads / groups consecutive heads. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)
        initial_state: State before the first token, zeros if absent. (B, heads, P, S)

    Returns:
        Outputs (B, L, heads, P) and the state after the last token (B, heads, P, S).
    """
    batch, _, heads, channels = x.shape
    b, c = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (b, c))
    state = x.new_zeros(batch, heads, channels, b.shape[3]) if initial_state is None else initial_state
    # Unbound once: the gradient of an index into the whole would fill a table of zeros every step.
    steps = (x.unsqueeze(-1), log_decay.exp()[..., None, None], b.unsqueeze(-2), c.unsqueeze(-1))
    outputs = []
    for x_t, decay_t, b_t, c_t in zip(*(t.unbind(1) for t in steps), strict=True):
        state = decay_t * state + x_t * b_t
        outputs.append((state @ c_t).squeeze(-1))
    return torch.stack(outputs, dim=1), state


def ssd_scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """Compute the same as ``scan_reference`` with matrix products (SSD, arXiv 2405.21060, section 6).

    Decays are summed and the state is kept in fp32 whatever the inputs' precision. The gradient cannot be
    differentiated again.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)
        initial_state: State before the first token. (B, heads, P, S)
        chunk_size: Tokens a chunk, at most; a sequence of less than four chunks is one chunk.

    Returns:
        Outputs (B, L, heads, P) in x's dtype and the final state (B, heads, P, S) in fp32 (fp64 for fp64 inputs).
    """
    (batch, length, heads, channels), groups = x.shape, b.shape[2]
    routes = _routes((length,), heads, groups, chunk_size, x.device)
    start = None if initial_state is None else initial_state.unflatten(1, (groups, -1)).mT
    x, log_decay, b, c = x.flatten(1, 2), log_decay.flatten(1), b.flatten(1, 2), c.flatten(1, 2)
    y, end = scan_routes(x, log_decay, b, c, routes, start, with_end=True)
    assert end is not None
    return y.view(batch, length, heads, channels), end.mT.flatten(1, 2)


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
    routes = _routes((height, width), heads, 1, chunk_size, x.device)
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


def _routes(shape: tuple[int, ...], heads: int, groups: int, chunk_size: int, device: torch.device) -> Routes:
    """Make the routes of a sequence (L,) or a grid (H, W), once for each shape."""
    # A traced tensor must not outlive its trace.
    make = _make if torch.compiler.is_compiling() else _cached
    return make(shape, heads, groups, chunk_size, device)


def _make(shape: tuple[int, ...], heads: int, groups: int, chunk_size: int, device: torch.device) -> Routes:
    if len(shape) == 1:
        visits = torch.arange(shape[0], device=device).expand(groups, -1)
    else:
        height, width = shape
        visits = direction_visits(height, width, device)
    return make_routes(visits, heads, groups, chunk_size)


@lru_cache(maxsize=32)
def _cached(*args: Any) -> Routes:
    with torch.inference_mode(False):  # what inference made could not be trained with
        return _make(*args)
