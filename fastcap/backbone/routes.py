"""The scan of sequences that visit the rows of tables in any order, and its gradient for autograd.

A few images are worked on at a time: their rows are laid out in the sequences' order, scanned in chunks and put back
before the next ones, so that everything in between stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastcap.backbone.chunks import scan_chunks, scan_chunks_backward

_SLICE = 1 << 18  # numbers of x that are worked on at a time


def count_chunks(length: int, chunk_size: int) -> int:
    """Say into how many chunks of one size to cut a sequence."""
    return 1 if length < 4 * chunk_size else -(-length // chunk_size)


class Routes(NamedTuple):
    """How G sequences, each with heads / G heads, visit the rows of tables; padded to whole chunks at their ends."""

    visited: Tensor  # rows of the (N * heads) table in the sequences' order (heads * padded)
    placed: Tensor  # where in the sequences each row of that table is (N * heads)
    read: Tensor  # rows of the (N * groups) table of projections in the sequences' order (G * padded)
    read_by: Tensor  # where in the sequences each row of the projections is; one or G sequences read it (*, N * groups)


def make_routes(visits: Tensor, heads: int, groups: int, chunks: int) -> Routes:
    """Prepare the way of sequences through tables.

    Args:
        visits: Tokens in the order in which each sequence comes to them, without their padding. (G, N)
        heads: Heads of all sequences together.
        groups: 1 if all sequences read the same projections, or G if each reads its own.
        chunks: Chunks of a sequence.
    """
    count, length = visits.shape
    padded = -(-length // chunks) * chunks
    device = visits.device
    place = torch.arange(padded, device=device).clamp_(max=length - 1)
    when = torch.empty_like(visits).scatter_(1, visits, place[:length].expand(count, -1))
    sequence, head = torch.arange(count, device=device), torch.arange(heads, device=device).view(count, -1)
    padded_visits = visits.index_select(1, place)
    own = sequence.unsqueeze(1) if groups == count else torch.zeros_like(sequence).unsqueeze(1)
    where = when + padded * sequence.unsqueeze(1)
    return Routes(
        (padded_visits.unsqueeze(1) * heads + head.unsqueeze(2)).flatten(),
        (when.t().unsqueeze(2) + padded * head).flatten(),
        (padded_visits * groups + own).flatten(),
        where.t().reshape(1, -1) if groups == count else where,
    )


def scan_routes(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    routes: Routes,
    chunks: int,
    start: Tensor | None = None,
    with_end: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scan G sequences, each along its own way through the same tables.

    Args:
        x: Inputs times the step size. (B, N, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, N, heads)
        b: Input projections. (B, N, groups, S)
        c: Output projections. (B, N, groups, S)
        routes: The ways.
        chunks: Chunks of a sequence.
        start: State before the first token. (B, G, heads / G, S, P)
        with_end: Also return the state after the last token.

    Returns:
        Outputs (B, N, heads, P) and the last state (B, G, heads / G, S, P) in fp32 or fp64, or None.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    log_decay, b, c = log_decay.to(precise), b.to(x.dtype), c.to(x.dtype)
    start = None if start is None else start.to(precise)
    inputs = (x, log_decay, b, c, start, *routes, chunks, with_end)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, log_decay, b, c, start)):
            y, end = _Scan.apply(*inputs)
        else:
            y, end = _scan(*inputs)
    return y, end if with_end else None


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _scan(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:9])
        ctx.chunks, ctx.with_end = inputs[9:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
        x, log_decay, b, c, start, *routes = ctx.saved_tensors
        end = grad_end if ctx.with_end else None
        grads = _scan_backward(grad_y, end, x, log_decay, b, c, start, Routes(*routes), ctx.chunks)
        return (*grads, None, None, None, None, None, None)


def _scan(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, start: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor | None]:
    routes, chunks, with_end = Routes(*options[:4]), options[4], options[5]
    slices = _slices(x)
    y = x.new_empty(x.shape[0], routes.placed.shape[0], x.shape[3]) if len(slices) > 1 else None
    ends = []
    for part in slices:
        laid = _lay_out(x[part], log_decay[part], b[part], c[part], routes, chunks)
        found, end = scan_chunks(*laid, None if start is None else start[part], with_end)
        y = _put_back(found, routes, y, part)
        ends.append(end)
    assert y is not None
    return y.view(x.shape), _joined(ends) if with_end else None


def _scan_backward(
    grad_y: Tensor,
    grad_end: Tensor | None,
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor | None,
    routes: Routes,
    chunks: int,
) -> tuple[Tensor | None, ...]:
    slices = _slices(x)
    grad_x = x.new_empty(x.shape[0], routes.placed.shape[0], x.shape[3]) if len(slices) > 1 else None
    others: list[tuple[Tensor, ...]] = []
    for part in slices:
        laid = _lay_out(x[part], log_decay[part], b[part], c[part], routes, chunks)
        grads = scan_chunks_backward(
            _visited(grad_y[part], routes.visited, x.shape[1], laid[0].shape),
            None if grad_end is None else grad_end[part],
            *laid,
            None if start is None else start[part],
        )
        grad_x = _put_back(grads.x, routes, grad_x, part)
        decay = grads.log_decay.flatten(1).index_select(1, routes.placed)
        others.append((decay, *(_summed(t, routes.read_by) for t in (grads.b, grads.c)), *grads[4:]))
    assert grad_x is not None
    grad_decay, grad_b, grad_c, *grad_start = (_joined(list(found)) for found in zip(*others, strict=True))
    return (
        grad_x.view(x.shape),
        grad_decay.view(log_decay.shape),
        grad_b.view(b.shape),
        grad_c.view(c.shape),
        None if start is None else grad_start[0],
    )


def _slices(x: Tensor) -> list[slice]:
    """Say which images are worked on together; in a graph all of them."""
    if torch.compiler.is_compiling() or x.is_cuda:
        return [slice(None)]
    size = max(1, _SLICE // max(1, x[0].numel()))
    return [slice(first, first + size) for first in range(0, x.shape[0], size)]


def _lay_out(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, routes: Routes, chunks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay tables out in the sequences' order, as ``scan_chunks`` takes them."""
    batch, length, heads, channels = x.shape
    size = routes.visited.shape[0] // heads // chunks
    count = routes.read.shape[0] // (chunks * size)
    shape = (batch, count, heads // count, chunks, size)
    projections = (t.flatten(1, 2).index_select(1, routes.read).view(batch, count, chunks, size, -1) for t in (b, c))
    return (
        _visited(x, routes.visited, length, (*shape, channels)),
        _visited(log_decay, routes.visited, length, shape),
        *projections,
    )


def _visited(table: Tensor, rows: Tensor, length: int, shape: Sequence[int]) -> Tensor:
    """Take rows in the sequences' order, zeros in their padding."""
    found = table.flatten(1, 2).index_select(1, rows).view(*shape[:3], -1, *shape[5:])
    if found.shape[3] > length:
        found[:, :, :, length:].zero_()
    return found.view(shape)


def _put_back(found: Tensor, routes: Routes, whole: Tensor | None, part: slice) -> Tensor:
    """Put sequences back in the table's order, into ``whole`` where there is one. Returns (B, N * heads, P)."""
    rows = found.flatten(1, -2)
    if whole is None:
        return rows.index_select(1, routes.placed)
    torch.index_select(rows, 1, routes.placed, out=whole[part])
    return whole


def _summed(grad: Tensor, read_by: Tensor) -> Tensor:
    """Sum over the sequences that read a projection. (B, G, K, Q, S) -> (B, N * groups, S)."""
    found = grad.flatten(1, 3).index_select(1, read_by.flatten())
    return found.unflatten(1, read_by.shape).sum(1) if read_by.shape[0] > 1 else found


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
