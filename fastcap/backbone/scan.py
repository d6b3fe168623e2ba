"""Selective state-space scan of a patch grid in four directions, in plain torch.

The recurrence, per head with a scalar decay (Mamba-2 / SSD, Dao and Gu 2024, arXiv 2405.21060):

    h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T        h is (P, S): P head channels, S states
    y_t = h_t c_t

``x`` is already multiplied by the step size dt, and ``log_decay`` is dt * a with a < 0. ``scan_reference`` is the
recurrence itself, token by token, to compare against and never to train with.

``grid_scan`` is the cross-scan (VMamba, arXiv 2401.10166), computed as matrix products over chunks of tokens, with a
gradient of its own. It walks the grid row by row and column by column, forwards and backwards, so that causal scans let
every patch see all others. Heads are shared out over the directions: right, left, down, up.

The chunk form (SSD, section 6) has sequences as (B, groups, heads of a group, chunks, Q, ...), each read from first to
last. With l the decays summed from the start of a token's chunk, H the state that enters the chunk and A what it adds,

    y_i = sum_{j <= i} (c_i . b_j) exp(l_i - l_j) x_j  +  exp(l_i) c_i . H          inside the chunk, and before it
    A   = sum_j exp(l_Q - l_j) b_j x_j^T                                           (S, P)
    H_z = sum_{k < z} exp(m_z - m_{k+1}) A_k                                       m_z: decays summed before chunk z

No exponent is ever positive, so nothing overflows. Only the last line couples chunks, as one small product over them.

The gradient is made of the transposed products and computes the decays anew. Those of the decays need no more: a decay
weighs all that crosses it. Let g_s be the sum of gradient times weight over what token s reads (its row, and H) minus
that over what is read from it (its column, and A). Within a chunk the sum of g_s over s from t to the chunk's end
is what crosses t, less what also crosses the chunk's end; that is <H_{z+1}, gradient of H_{z+1}>, and is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NUM_DIRECTIONS = 4
_SLICE = 1 << 18  # numbers of x that are worked on at a time


def scan_reference(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Run the recurrence one token at a time.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections; each group serves heads / groups consecutive heads. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)

    Returns:
        (B, L, heads, P)
    """
    batch, _, heads, channels = x.shape
    b, c = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (b, c))
    state = x.new_zeros(batch, heads, channels, b.shape[3])
    # Unbound once: the gradient of an index into the whole would fill a table of zeros every step.
    steps = (x.unsqueeze(-1), log_decay.exp()[..., None, None], b.unsqueeze(-2), c.unsqueeze(-1))
    outputs = []
    for x_t, decay_t, b_t, c_t in zip(*(t.unbind(1) for t in steps), strict=True):
        state = decay_t * state + x_t * b_t
        outputs.append((state @ c_t).squeeze(-1))
    return torch.stack(outputs, dim=1)


def direction_visits(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the patches, by raster index, in the order in which each direction comes to them. (4, N), N = H * W."""
    raster = torch.arange(height * width, device=device)
    columns = raster.view(height, width).t().reshape(-1)
    return torch.stack([raster, raster.flip(0), columns, columns.flip(0)])


def grid_scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, chunk_size: int = 32) -> Tensor:
    """Scan a grid in four directions, the first quarter of the heads to the right, the others left, down and up.

    Decays are summed and states are kept in fp32 whatever the inputs' precision. The gradient cannot be differentiated
    again.

    Args:
        x: Inputs times the step size. (B, H, W, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, H, W, heads)
        b: Input projections, the same from whatever direction a patch is reached. (B, H, W, S)
        c: Output projections. (B, H, W, S)
        chunk_size: Tokens a chunk, at most; a grid of less than four chunks is one chunk.

    Returns:
        (B, H, W, heads, P)
    """
    shape, device = x.shape, x.device
    _, height, width, heads, _ = shape
    # A traced tensor must not outlive its trace.
    routes = (_routes if torch.compiler.is_compiling() else _cached)(height, width, heads, chunk_size, device)
    decays = log_decay.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    tables = x.flatten(1, 3), decays, b.flatten(1, 2).to(x.dtype), c.flatten(1, 2).to(x.dtype)
    with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
        if torch.is_grad_enabled() and any(t.requires_grad for t in tables):
            return _Scan.apply(*tables, *routes).view(shape)
        return _scan(*tables, routes).view(shape)


class Routes(NamedTuple):
    """How sequences of h heads each visit the rows of tables, one sequence a direction: N tokens in K chunks of Q.

    The table of tokens and heads has a row for each token and head of any direction, (N * 4 * h); that of projections
    a row for each token, which all directions read.
    """

    visited: Tensor  # rows of the table of tokens and heads in the sequences' order (4 * h * K * Q)
    placed: Tensor  # where in the sequences each row of that table is (N * 4 * h)
    read: Tensor  # rows of the table of projections in the sequences' order (4 * K * Q)
    read_by: Tensor  # where in each sequence each row of the projections is (4, N)
    shape: tuple[int, int, int, int]  # 4, h, K, Q; the last chunk is padded


def _routes(height: int, width: int, heads: int, chunk_size: int, device: torch.device) -> Routes:
    """Lay out the way of the four directions through a grid; less than four chunks (an export: eight) are one."""
    length = height * width
    chunks = 1 if length < (8 if torch.compiler.is_exporting() else 4) * chunk_size else -(-length // chunk_size)
    size = -(-length // chunks)
    padded = chunks * size
    visits = direction_visits(height, width, device)
    place = torch.arange(padded, device=device).clamp_(max=length - 1)
    when = torch.empty_like(visits).scatter_(1, visits, place[:length].expand(NUM_DIRECTIONS, -1))
    where = when + padded * torch.arange(NUM_DIRECTIONS, device=device).unsqueeze(1)
    head = torch.arange(heads, device=device).view(NUM_DIRECTIONS, -1)
    padded_visits = visits.index_select(1, place)
    return Routes(
        visited=(padded_visits.unsqueeze(1) * heads + head.unsqueeze(2)).flatten(),
        placed=(when.t().unsqueeze(2) + padded * head).flatten(),
        read=padded_visits.flatten(),
        read_by=where,
        shape=(NUM_DIRECTIONS, heads // NUM_DIRECTIONS, chunks, size),
    )


@lru_cache(maxsize=32)
def _cached(*args: Any) -> Routes:
    with torch.inference_mode(False):  # what inference made could not be trained with
        return _routes(*args)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, *routes: Any) -> Tensor:
        return _scan(x, log_decay, b, c, Routes(*routes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.shape = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        tables, routes = ctx.saved_tensors[:4], Routes._make([*ctx.saved_tensors[4:], ctx.shape])
        return (*_scan_backward(grad_y, tables, routes), *[None] * 5)


def _scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, routes: Routes) -> Tensor:
    """Scan tables (B, N * 4 * h, P), (B, N * 4 * h), (B, N, S) and (B, N, S) along each way; returns outputs like x."""
    parts = list(_slices(x))
    if len(parts) == 1:
        return _put_back(scan_chunks(*_laid_out((x, log_decay, b, c), routes)), routes)
    outputs = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part in parts:
        laid = _laid_out((x[part], log_decay[part], b[part], c[part]), routes)
        _put_back(scan_chunks(*laid), routes, outputs[part])
    return outputs


def _scan_backward(grad_y: Tensor, tables: tuple[Tensor, ...], routes: Routes) -> list[Tensor]:
    """Return the gradients of the four tables."""
    grads = [torch.empty_like(table, memory_format=torch.contiguous_format) for table in tables]
    for part in _slices(grad_y):
        laid = _laid_out([table[part] for table in tables], routes)
        grad_x, grad_decay, *projections = scan_chunks_backward(_visited(grad_y[part], routes), *laid)
        _put_back(grad_x, routes, grads[0][part])
        grads[1][part] = grad_decay.flatten(1).index_select(1, routes.placed)
        for whole, grad in zip(grads[2:], projections, strict=True):
            found = grad.flatten(1, 3).index_select(1, routes.read_by.flatten())
            whole[part] = found.unflatten(1, routes.read_by.shape).sum(1)  # over the directions, which all read a row
    return grads


def _slices(x: Tensor) -> Iterator[slice]:
    """Say which images are worked on together: a few, so that what comes in between stays in the processor's cache."""
    if torch.compiler.is_compiling() or x.is_cuda or x.numel() <= _SLICE:
        yield slice(None)
        return
    size = max(1, _SLICE // (x.shape[1] * x.shape[2]))
    yield from (slice(first, first + size) for first in range(0, x.shape[0], size))


def _laid_out(tables: Any, routes: Routes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay tables out in the sequences' order, as ``scan_chunks`` takes them."""
    x, log_decay, b, c = tables
    count, _, chunks, size = routes.shape
    b, c = (t.index_select(1, routes.read).view(-1, count, chunks, size, t.shape[2]) for t in (b, c))
    return _visited(x, routes), _visited(log_decay, routes), b, c


def _visited(table: Tensor, routes: Routes) -> Tensor:
    """Take rows in the sequences' order, zeros for their padding. (B, N * 4 * h, ...) -> (B, 4, h, K, Q, ...)."""
    found = table.index_select(1, routes.visited)
    count, heads, chunks, size = routes.shape
    length = routes.read_by.shape[1]
    if chunks * size > length:
        found.view(-1, count, heads, chunks * size, *table.shape[2:])[:, :, :, length:].zero_()
    return found.view(-1, *routes.shape, *table.shape[2:])


def _put_back(found: Tensor, routes: Routes, out: Tensor | None = None) -> Tensor:
    """Put sequences back in the table's order. (B, 4, h, K, Q, P) -> (B, N * 4 * h, P)."""
    return torch.index_select(found.flatten(1, -2), 1, routes.placed, out=out)


def scan_chunks(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan sequences that are cut in chunks. Writes nothing into its inputs; autograd cannot follow it.

    Args:
        x: Inputs times the step size. (B, G, h, K, Q, P)
        log_decay: Logarithm of the decay of each step, fp32 or fp64. (B, G, h, K, Q)
        b: Input projections. (B, G, K, Q, S)
        c: Output projections. (B, G, K, Q, S)

    Returns:
        Outputs like x.
    """
    total, decay, affinity = _weights(log_decay, b, c)
    weights = decay.mul_(affinity)
    if x.shape[3] == 1:  # nothing enters the only chunk
        return _product(weights, x).view_as(x)
    carry = _Carry.of(total, b, c)
    y = _product(carry.reads, carry.states(x).to(x.dtype))
    return _add_product(y, weights, x).view_as(x)


def scan_chunks_backward(
    grad_y: Tensor, x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``scan_chunks``'s inputs, which follow the gradient of its outputs."""
    total, decay, affinity = _weights(log_decay, b, c)
    weights = decay * affinity
    grad_x = _product(weights.mT, grad_y)
    # From here on `crossing` is gradient times weight, of the (Q, Q) matrix first.
    crossing = _product(grad_y, x.mT).view_as(weights).mul_(decay)
    grad_affinity = crossing.sum(2).tril_()
    crossing.mul_(affinity)
    grad_sum = crossing.sum(-1, dtype=log_decay.dtype) - crossing.sum(-2, dtype=log_decay.dtype)
    grad_b, grad_c = grad_affinity.mT @ c, grad_affinity @ b
    later = None
    if x.shape[3] > 1:
        carry = _Carry.of(total, b, c)
        states = carry.states(x)
        grad_states = _product(carry.reads.mT, grad_y).view_as(states).to(states.dtype)
        grad_added = _product(carry.between.mT, grad_states.flatten(4)).view_as(states)
        grad_reads = _product(grad_y, states.to(x.dtype).mT).view_as(carry.reads)
        grad_writes = _product(x, grad_added.to(x.dtype).mT).view_as(carry.writes)
        grad_x = _add_product(grad_x, carry.writes, grad_added.to(x.dtype))
        grad_sum += (grad_reads * carry.reads).sum(-1, dtype=grad_sum.dtype)
        grad_sum -= (grad_writes * carry.writes).sum(-1, dtype=grad_sum.dtype)
        grad_c += grad_reads.mul_(carry.decay_in).sum(2)
        grad_b += grad_writes.mul_(carry.decay_out).sum(2)
        later = (grad_added[..., :-1, :, :] * states[..., 1:, :, :]).sum((-2, -1))
    grad_decay = grad_sum.flip(-1).cumsum(-1).flip(-1)
    if later is not None:
        grad_decay += F.pad(later, (0, 1)).unsqueeze(-1)
    return grad_x.view_as(x), grad_decay, grad_b, grad_c


def _weights(log_decay: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what tokens of a chunk mean to each other.

    Returns:
        Decays summed from the chunk's start (B, G, h, K, Q); decay from token j (excluded) to token i, meaningless
        above the diagonal (B, G, h, K, Q, Q); c_i . b_j, zero above the diagonal (B, G, 1, K, Q, Q).
    """
    total = log_decay.cumsum(-1)
    decay = _exp(total.unsqueeze(-1) - total.unsqueeze(-2)).to(b.dtype)
    return total, decay, (c @ b.mT).tril_().unsqueeze(2)


class _Carry(NamedTuple):
    """How chunks pass on what they add."""

    decay_in: Tensor  # from the chunk's start to each token (B, G, h, K, Q, 1)
    decay_out: Tensor  # from each token to the chunk's end (B, G, h, K, Q, 1)
    reads: Tensor  # c, decayed from the chunk's start (B, G, h, K, Q, S)
    writes: Tensor  # b, decayed to the chunk's end (B, G, h, K, Q, S)
    between: Tensor  # decay of what a chunk adds until another one begins (B, G, h, K, K)

    @classmethod
    def of(cls, total: Tensor, b: Tensor, c: Tensor) -> _Carry:
        whole = total[..., -1:]
        decay_in = total.exp().to(b.dtype).unsqueeze(-1)
        decay_out = (whole - total).exp_().to(b.dtype).unsqueeze(-1)
        met = whole.squeeze(-1).cumsum(-1)
        first = F.pad(met[..., :-1], (1, 0))
        between = _exp(first.unsqueeze(-1) - met.unsqueeze(-2)).tril_(-1)
        return cls(decay_in, decay_out, c.unsqueeze(2) * decay_in, b.unsqueeze(2) * decay_out, between)

    def states(self, x: Tensor) -> Tensor:
        """States that enter the chunks, in the decays' dtype. (B, G, h, K, S, P)."""
        added = _product(self.writes.mT, x).view(*x.shape[:4], -1, x.shape[-1]).to(self.between.dtype)
        return _product(self.between, added.flatten(4)).view_as(added)


def _exp(difference: Tensor) -> Tensor:
    """Exponentials of differences held between -80 and 0, in place: the fast path, many times faster than for -inf."""
    return difference.clamp_(-80.0, 0.0).exp_()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product. (..., i, j) and (..., j, k) -> (n, i, k)."""
    return torch.bmm(a.flatten(0, -3), b.flatten(0, -3))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a batched matrix product to another, in its place but in a graph."""
    # Not `baddbmm_`, which FlopCounterMode passes over; and torch.export takes no `out`.
    out = None if torch.compiler.is_compiling() else total
    return torch.baddbmm(total, a.flatten(0, -3), b.flatten(0, -3), out=out)


class GridPosition(nn.Module):
    """Add a learned projection of sines of the relative grid coordinates, so any H x W works."""

    def __init__(self, dim: int, num_bands: int = 6) -> None:
        super().__init__()
        self.num_bands = num_bands
        self.project = nn.Linear(4 * num_bands, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the position code. (B, H, W, D) -> (B, H, W, D)."""
        height, width = x.shape[1:3]
        bands = math.pi * 2.0 ** torch.arange(self.num_bands, device=x.device) / 2
        rows = ((torch.arange(height, device=x.device) + 0.5) / height)[:, None] * bands
        columns = ((torch.arange(width, device=x.device) + 0.5) / width)[:, None] * bands
        rows = torch.cat([rows.sin(), rows.cos()], -1)[:, None].expand(-1, width, -1)
        columns = torch.cat([columns.sin(), columns.cos()], -1)[None].expand(height, -1, -1)
        return x + self.project(torch.cat([rows, columns], -1).to(self.project.weight.dtype))
