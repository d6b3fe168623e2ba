"""Selective state-space scans in plain torch, and the four-direction cross-scan over a patch grid.

The recurrence, per head with a scalar decay (Mamba-2 / SSD, Dao and Gu 2024, arXiv 2405.21060):

    h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T        h is (P, S): P head channels, S states
    y_t = h_t c_t

``x`` is already multiplied by the step size dt, and ``log_decay`` is dt * a with a < 0. Two forms:
``scan_reference`` is the recurrence itself, token by token, to compare against and never to train with;
``ssd_scan`` is the same function as matrix products over chunks of tokens.

The cross-scan (VMamba, arXiv 2401.10166) walks a grid row by row and column by column, each forwards and
backwards, so that a causal scan lets every patch see all others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
    heads = x.shape[2]
    b, c = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (b, c))
    state = x.new_zeros(x.shape[0], heads, x.shape[3], b.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(x.shape[1]):
        state = log_decay[:, t, :, None, None].exp() * state + x[:, t, :, :, None] * b[:, t, :, None, :]
        outputs.append((state * c[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


def _decay_matrix(log_decay: Tensor) -> Tensor:
    """Return the decay from token j (excluded) to token i, zero above the diagonal. (..., Q) -> (..., Q, Q).

    Differences of one cumulative sum, masked before the exponential, so no exponent is ever positive.
    """
    total = log_decay.cumsum(-1)
    length = log_decay.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).triu(1)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()


def ssd_scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Compute the same as ``scan_reference`` with matrix products (SSD, arXiv 2405.21060, section 6).

    Inside a chunk every token attends to the earlier ones through the decay matrix; between chunks only the
    state travels, by one small lower-triangular product over chunks. Decays are summed and the state is kept in
    fp32 whatever the inputs' precision.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)
        initial_state: State before the first token. (B, heads, P, S)
        chunk_size: Tokens a chunk; sequences not longer than 1.5 chunks run as one.

    Returns:
        Outputs (B, L, heads, P) in x's dtype and the final state (B, heads, P, S) in fp32 (fp64 for fp64 inputs).
    """
    batch, length, heads, channels = x.shape
    groups, states = b.shape[2], b.shape[3]
    per_group = heads // groups
    precise = torch.promote_types(x.dtype, torch.float32)
    chunk = length if length <= chunk_size * 3 // 2 else chunk_size
    missing = -length % chunk
    if missing:
        x, b, c = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (x, b, c))
        log_decay = F.pad(log_decay, (0, 0, 0, missing))
    chunks = (length + missing) // chunk

    # (B, chunks, groups, heads of the group, Q, ...): the last two dimensions are those of the matrix products.
    x = x.reshape(batch, chunks, chunk, groups, per_group, channels).permute(0, 1, 3, 4, 2, 5)
    b = b.reshape(batch, chunks, chunk, groups, 1, states).permute(0, 1, 3, 4, 2, 5)
    c = c.reshape(batch, chunks, chunk, groups, 1, states).permute(0, 1, 3, 4, 2, 5)
    decay = log_decay.to(precise).reshape(batch, chunks, chunk, groups, per_group).permute(0, 1, 3, 4, 2)

    within = (c @ b.mT) * _decay_matrix(decay).to(x.dtype)
    y = within @ x
    total = decay.cumsum(-1)
    if chunks == 1 and initial_state is None:
        added = (x * (total[..., -1:] - total).exp().unsqueeze(-1).to(x.dtype)).mT @ b
        final = added.to(precise)[:, 0]
    else:
        added = (x * (total[..., -1:] - total).exp().unsqueeze(-1).to(x.dtype)).mT @ b
        start = (
            added.new_zeros(batch, 1, groups, per_group, channels, states)
            if initial_state is None
            else initial_state.reshape(batch, 1, groups, per_group, channels, states)
        )
        added = torch.cat([start.to(precise), added.to(precise)], dim=1)
        between = _decay_matrix(F.pad(total[..., -1].permute(0, 2, 3, 1), (1, 0)))
        state = torch.einsum("bghzc,bcghps->bzghps", between, added)
        final = state[:, -1]
        y = y + (c * total.exp().unsqueeze(-1).to(c.dtype)) @ state[:, :-1].to(c.dtype).mT
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, length + missing, heads, channels)[:, :length]
    return y, final.reshape(batch, heads, channels, states)


def cross_scan_order(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Grid positions in the order each direction visits them.

    Directions: 0 row by row (to the right), 1 the same backwards (to the left), 2 column by column (down),
    3 the same backwards (up).

    Returns:
        Raster indices, int64. (4, H * W)
    """
    raster = torch.arange(height * width, device=device)
    columns = raster.view(height, width).t().reshape(-1)
    return torch.stack([raster, raster.flip(0), columns, columns.flip(0)])


def cross_scan(x: Tensor, order: Tensor) -> Tensor:
    """Put each direction's share of the channels into the order in which that direction walks the grid.

    Args:
        x: One share of channels a direction, raster order. (B, N, 4, C)
        order: From ``cross_scan_order``. (4, N)

    Returns:
        (B, 4, N, C)
    """
    batch, length, directions, channels = x.shape
    source = (order * directions + torch.arange(directions, device=order.device)[:, None]).reshape(-1)
    return x.reshape(batch, length * directions, channels).index_select(1, source).view(batch, directions, length, -1)


def cross_merge(y: Tensor, order: Tensor) -> Tensor:
    """Undo ``cross_scan``: every direction back to raster order, side by side.

    Args:
        y: Scanned channels. (B, 4, N, C)
        order: From ``cross_scan_order``. (4, N)

    Returns:
        (B, N, 4, C)
    """
    batch, directions, length, channels = y.shape
    inverse = torch.argsort(order, dim=1) + torch.arange(directions, device=order.device)[:, None] * length
    flat = y.reshape(batch, directions * length, channels).index_select(1, inverse.t().reshape(-1))
    return flat.view(batch, length, directions, channels)
