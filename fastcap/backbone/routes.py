"""The scan of sequences that visit the rows of tables in any order, and its gradient for autograd.

A few images are worked on at a time: their rows are laid out in the sequences' order, scanned in chunks and put back
before the next ones, so that everything in between stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastcap.backbone.chunks import scan_chunks, scan_chunks_backward

_SLICE = 1 << 18  # numbers of x that are worked on at a time


class Routes(NamedTuple):
    """How G sequences of h heads each visit the rows of tables: N tokens, padded to K chunks of Q."""

    visited: Tensor  # rows of the table of tokens and heads in the sequences' order (G * h * K * Q)
    placed: Tensor  # where in the sequences each row of that table is (N * G * h)
    read: Tensor  # rows of the table of projections in the sequences' order (G * K * Q)
    read_by: Tensor  # where in the sequences each row of the projections is (1, N * G), or (G, N) if all read the same
    length: int  # N
    shape: tuple[int, int, int, int]  # G, h, K, Q


def make_routes(visits: Tensor, heads: int, groups: int, chunk_size: int) -> Routes:
    """Prepare the way of sequences through tables.

    Args:
        visits: Tokens in the order in which each sequence comes to them. (G, N)
        heads: Heads of all sequences together.
        groups: 1 if all sequences read the same projections, or G if each reads its own.
        chunk_size: Tokens a chunk, at most; sequences of less than four chunks are one chunk.
    """
    count, length = visits.shape
    chunks = 1 if length < 4 * chunk_size else -(-length // chunk_size)
    size = -(-length // chunks)
    padded = chunks * size
    device = visits.device
    place = torch.arange(padded, device=device).clamp_(max=length - 1)
    when = torch.empty_like(visits).scatter_(1, visits, place[:length].expand(count, -1))
    sequence = torch.arange(count, device=device).unsqueeze(1)
    head = torch.arange(heads, device=device).view(count, -1)
    padded_visits = visits.index_select(1, place)
    where = when + padded * sequence
    return Routes(
        visited=(padded_visits.unsqueeze(1) * heads + head.unsqueeze(2)).flatten(),
        placed=(when.t().unsqueeze(2) + padded * head).flatten(),
        read=(padded_visits * groups + (sequence if groups == count else 0)).flatten(),
        read_by=where.t().reshape(1, -1) if groups == count else where,
        length=length,
        shape=(count, heads // count, chunks, size),
    )


def scan_routes(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    routes: Routes,
    start: Tensor | None = None,
    with_end: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scan sequences, each along its own way through the same tables.

    Args:
        x: Inputs times the step size, a row for each token and head. (B, N * G * h, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, N * G * h)
        b: Input projections, a row for each token and group. (B, N * groups, S)
        c: Output projections. (B, N * groups, S)
        routes: The ways.
        start: State before the first token. (B, G, h, S, P)
        with_end: Also return the state after the last token.

    Returns:
        Outputs like x, and the last state (B, G, h, S, P) in fp32 or fp64, or None.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    log_decay, b, c = log_decay.to(precise), b.to(x.dtype), c.to(x.dtype)
    start = None if start is None else start.to(precise)
    device = x.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, log_decay, b, c, start)):
            return _Scan.apply(x, log_decay, b, c, start, *routes, with_end)
        return _scan(x, log_decay, b, c, start, routes, with_end)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, start: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor | None]:
        return _scan(x, log_decay, b, c, start, Routes(*rest[:-1]), rest[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
        ctx.save_for_backward(*inputs[:9])
        ctx.length, ctx.shape, ctx.with_end = inputs[9:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_end: Tensor | None) -> tuple[Tensor | None, ...]:
        x, log_decay, b, c, start, visited, placed, read, read_by = ctx.saved_tensors
        routes = Routes(visited, placed, read, read_by, ctx.length, ctx.shape)
        grads = _scan_backward(grad_y, grad_end if ctx.with_end else None, x, log_decay, b, c, start, routes)
        return (*grads, *[None] * 7)


def _scan(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, start: Tensor | None, routes: Routes, with_end: bool
) -> tuple[Tensor, Tensor | None]:
    slices = _slices(x)
    if slices is None:
        y, end = scan_chunks(*_laid_out(x, log_decay, b, c, routes), start, with_end)
        return _put_back(y, routes), end
    outputs, ends = torch.empty_like(x, memory_format=torch.contiguous_format), []
    for part in slices:
        laid = _laid_out(x[part], log_decay[part], b[part], c[part], routes)
        y, end = scan_chunks(*laid, None if start is None else start[part], with_end)
        _put_back(y, routes, outputs[part])
        ends.append(end)
    return outputs, _joined(ends)


def _scan_backward(
    grad_y: Tensor,
    grad_end: Tensor | None,
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor | None,
    routes: Routes,
) -> tuple[Tensor | None, ...]:
    grad_x, others = torch.empty_like(x, memory_format=torch.contiguous_format), []
    for part in _slices(x) or [slice(None)]:
        laid = _laid_out(x[part], log_decay[part], b[part], c[part], routes)
        grads = scan_chunks_backward(
            _visited(grad_y[part], routes),
            None if grad_end is None else grad_end[part],
            *laid,
            None if start is None else start[part],
        )
        _put_back(grads.x, routes, grad_x[part])
        decay = grads.log_decay.flatten(1).index_select(1, routes.placed)
        others.append((decay, _summed(grads.b, routes), _summed(grads.c, routes), grads.start))
    return grad_x, *(_joined(found) for found in zip(*others, strict=True))


def _slices(x: Tensor) -> list[slice] | None:
    """Say which images are worked on together, or None for all of them, as in a graph."""
    if torch.compiler.is_compiling() or x.is_cuda or x.numel() <= _SLICE:
        return None
    size = max(1, _SLICE // (x.shape[1] * x.shape[2]))
    return [slice(first, first + size) for first in range(0, x.shape[0], size)]


def _laid_out(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, routes: Routes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay tables out in the sequences' order, as ``scan_chunks`` takes them."""
    count, _, chunks, size = routes.shape
    b, c = (t.index_select(1, routes.read).view(-1, count, chunks, size, t.shape[2]) for t in (b, c))
    return _visited(x, routes), _visited(log_decay, routes), b, c


def _visited(table: Tensor, routes: Routes) -> Tensor:
    """Take rows in the sequences' order, zeros for their padding. (B, N * G * h, ...) -> (B, G, h, K, Q, ...)."""
    found = table.index_select(1, routes.visited)
    count, heads, chunks, size = routes.shape
    if chunks * size > routes.length:
        found.view(-1, count, heads, chunks * size, *table.shape[2:])[:, :, :, routes.length :].zero_()
    return found.view(-1, *routes.shape, *table.shape[2:])


def _put_back(found: Tensor, routes: Routes, out: Tensor | None = None) -> Tensor:
    """Put sequences back in the table's order. (B, G, h, K, Q, P) -> (B, N * G * h, P)."""
    return torch.index_select(found.flatten(1, -2), 1, routes.placed, out=out)


def _summed(grad: Tensor, routes: Routes) -> Tensor:
    """Sum over the sequences that read a projection. (B, G, K, Q, S) -> (B, N * groups, S)."""
    found = grad.flatten(1, 3).index_select(1, routes.read_by.flatten())
    return found.unflatten(1, routes.read_by.shape).sum(1) if routes.read_by.shape[0] > 1 else found


def _joined(parts: Sequence[Any]) -> Any:
    """Join what was found for each slice: tensors, or None for all of them."""
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.cat(list(parts))
