"""The four-direction cross-scan over a patch grid (VMamba, arXiv 2401.10166).

Two walks cover the grid, row by row and column by column, and each is walked forwards and backwards, so that causal
scans let every patch see all others. Heads are shared out over the directions: right, left, down, up.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastcap.backbone.scan import decay_weights, ssd_scan

NUM_DIRECTIONS = 4
NUM_WALKS = 2


def cross_scan(grid: Tensor) -> Tensor:
    """Lay a grid out along its two walks: the first share of channels row by row, the second column by column.

    Args:
        grid: One share of channels a walk. (B, H, W, 2, C)

    Returns:
        (B, 2, N, C), N = H * W
    """
    rows, columns = grid.unbind(3)
    return torch.stack([rows.flatten(1, 2), columns.transpose(1, 2).flatten(1, 2)], dim=1)


def cross_merge(walks: Tensor, height: int, width: int) -> Tensor:
    """Undo ``cross_scan``.

    Args:
        walks: Scanned channels. (B, 2, N, C)
        height: Rows H of the grid.
        width: Columns W of the grid.

    Returns:
        (B, H, W, 2, C)
    """
    rows, columns = walks.unbind(1)
    return torch.stack(
        [rows.unflatten(1, (height, width)), columns.unflatten(1, (width, height)).transpose(1, 2)], dim=3
    )


def grid_scan(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk_size: int = 64, max_quadratic: int = 256
) -> Tensor:
    """Scan a grid in four directions, the first quarter of the heads to the right, the others left, down and up.

    Up to ``max_quadratic`` patches the scan runs in its dual form, as attention under a mask of decays (SSD,
    arXiv 2405.21060, section 3): nothing is laid out along the walks, a direction is only another mask, and one product
    of c and b serves all four. Beyond, the walks are scanned in chunks, at a cost linear in the patches. Both are the
    same function.

    Args:
        x: Inputs times the step size. (B, H, W, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, H, W, heads)
        b: Input projections, the same from whatever direction a patch is reached. (B, H, W, S)
        c: Output projections. (B, H, W, S)
        chunk_size: Tokens a chunk, as in ``ssd_scan``.
        max_quadratic: Patches up to which the dual form is used.

    Returns:
        (B, H, W, heads, P)
    """
    if x.shape[1] * x.shape[2] <= max_quadratic:
        return _masked_attention(x, log_decay, b, c)
    return _scanned_walks(x, log_decay, b, c, chunk_size)


def _scanned_walks(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk_size: int) -> Tensor:
    batch, height, width, heads, channels = x.shape
    # The walks join the batch: (2B, N, ...). Of each walk's heads the first half runs forwards.
    x, log_decay = (cross_scan(t.flatten(3).unflatten(3, (NUM_WALKS, -1))).flatten(0, 1) for t in (x, log_decay))
    b, c = (cross_scan(t.unsqueeze(3).expand(-1, -1, -1, NUM_WALKS, -1)).flatten(0, 1).unsqueeze(2) for t in (b, c))
    x = x.unflatten(-1, (heads // NUM_WALKS, channels))
    y, _ = ssd_scan(x, log_decay, b, c, num_backward=heads // NUM_DIRECTIONS, chunk_size=chunk_size)
    y = cross_merge(y.flatten(2).unflatten(0, (batch, NUM_WALKS)), height, width)
    return y.flatten(3).unflatten(3, (heads, channels))


def _masked_attention(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    height, width, heads = x.shape[1:4]
    length, per_direction = height * width, heads // NUM_DIRECTIONS
    order, place, visible = direction_masks(height, width, x.device)
    # Decays summed along each direction's way, then back in raster order.
    decay = log_decay.to(torch.promote_types(x.dtype, torch.float32))
    total = (
        decay.reshape(-1, length * NUM_DIRECTIONS, per_direction)
        .index_select(1, order)
        .unflatten(1, (NUM_DIRECTIONS, length))
        .cumsum(2)
    )
    total = total.flatten(1, 2).index_select(1, place).unflatten(1, (NUM_DIRECTIONS, length)).mT
    affinity = (c.flatten(1, 2) @ b.flatten(1, 2).mT).unsqueeze(1) * visible.to(c.dtype)
    weights = affinity.unsqueeze(2) * decay_weights(total).to(x.dtype)
    y = weights.flatten(1, 2) @ x.flatten(1, 2).transpose(1, 2)
    return y.transpose(1, 2).unflatten(1, (height, width))


def direction_masks(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Describe how the four directions visit a grid.

    Args:
        height: Rows H of the grid.
        width: Columns W of the grid.
        device: Where the result lies.

    Returns:
        ``order``, for each direction in turn the entries of a (N, 4) table in the order of the visits (4N); ``place``,
        for each direction the entries of a (4, N) table of visits in raster order (4N); and ``visible``, which is one
        where a direction has come to patch j by the time it is at patch i, else zero (4, N, N).
    """
    if torch.compiler.is_compiling():  # a traced tensor must not outlive its trace
        return _direction_masks(height, width, device)
    return _cached_direction_masks(height, width, device)


def _direction_masks(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    length = height * width
    raster = torch.arange(length, device=device)
    columns = raster.view(height, width).t().reshape(-1)
    visits = torch.stack([raster, raster.flip(0), columns, columns.flip(0)])
    by_columns = raster.view(width, height).t().reshape(-1)
    when = torch.stack([raster, length - 1 - raster, by_columns, length - 1 - by_columns])
    direction = torch.arange(NUM_DIRECTIONS, device=device).unsqueeze(1)
    visible = (when.unsqueeze(1) <= when.unsqueeze(2)).float()
    return (
        (visits * NUM_DIRECTIONS + direction).flatten(),
        (when + direction * length).flatten(),
        visible,
    )


@lru_cache(maxsize=16)
def _cached_direction_masks(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # what inference made could not be trained with
        return _direction_masks(height, width, device)
