"""Distributed collectives with which several processes compute what one process would.

DistributedDataParallel averages gradients over processes. A loss is therefore right where its average over processes is
the loss of the whole batch. Collectives run only inside ``collective()``: elsewhere a process may be captioning by
itself, and would wait for the others for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed, nn

_collective: ContextVar[bool] = ContextVar("collective", default=False)


@contextmanager
def collective() -> Iterator[None]:
    """Allow collectives inside: every process runs this block, the same number of times."""
    token = _collective.set(True)
    try:
        yield
    finally:
        _collective.reset(token)


def num_ranks() -> int:
    """Return how many processes take part: one outside ``collective()``."""
    if _collective.get() and distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def total(values: Tensor) -> Tensor:
    """Sum over processes, without a gradient; a tensor of any shape."""
    if num_ranks() == 1:
        return values
    values = values.detach().clone()
    distributed.all_reduce(values)
    return values


def weigh(losses: Mapping[str, Tensor], counts: Mapping[str, Tensor | int]) -> dict[str, Tensor]:
    """Weigh this process's means by how much they are means of, so that their average is the whole batch's mean.

    Args:
        losses: Means over this process's share of the batch, by name. ()
        counts: What each is a mean over: tokens, captions, images. Losses without one are the whole batch's already.

    Returns:
        The losses; the very same ones in a single process.
    """
    weighed = dict(losses)
    ranks = num_ranks()
    if ranks > 1:
        names = [name for name in losses if name in counts]
        device = losses[names[0]].device
        own = torch.stack([torch.as_tensor(counts[name], device=device).float() for name in names])
        shares = ranks * own / total(own).clamp(min=1e-9)
        weighed.update((name, losses[name] * share) for name, share in zip(names, shares.unbind(), strict=True))
    return weighed


def averaged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average numbers over processes, without a gradient, in one exchange. Each ()."""
    values = {name: value.detach() for name, value in values.items()}
    ranks = num_ranks()
    if ranks == 1:
        return values
    means = total(torch.stack([value.float() for value in values.values()])) / ranks
    return dict(zip(values, means.unbind(), strict=True))


def gather_list(items: Sequence[Any]) -> list[Any]:
    """Join the lists of all processes, those of the first process first."""
    if num_ranks() == 1:
        return list(items)
    parts: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def gather_rows(rows: Tensor) -> Tensor:
    """Join the rows of all processes, which may be unequally many; the gradient comes back.

    Every process must go on to compute the same loss from what it gets: its own share of the gradient is then the sum
    over processes, and nothing is sent backwards.

    Args:
        rows: (B, ...)

    Returns:
        Those of the first process first. (B of all processes, ...)
    """
    ranks = num_ranks()
    if ranks == 1:
        return rows
    rank = distributed.get_rank()
    counts = torch.zeros(ranks, dtype=torch.long, device=rows.device)
    counts[rank] = len(rows)
    sizes = total(counts).tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    joined = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    joined[rank] = rows.clone()
    if joined[rank].requires_grad:
        joined[rank].register_hook(lambda gradient: ranks * gradient)
    return torch.cat(joined)


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumWithGradient.forward(ctx, gradients[0])


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the whole batch of all processes, on any device (torch's SyncBatchNorm refuses the CPU)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise. (B, C, H, W) -> (B, C, H, W)."""
        if not self.training or num_ranks() == 1:
            return super().forward(input)
        values = input.float()
        count = total(values.new_tensor([values.numel() // values.shape[1]]))
        mean = _SumWithGradient.apply(values.sum((0, 2, 3))) / count
        values = values - mean[:, None, None]
        variance = _SumWithGradient.apply(values.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        values = values * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            values = values * self.weight[:, None, None] + self.bias[:, None, None]
        return values.to(input.dtype)


def sync_batch_norms(module: nn.Module) -> None:
    """Let every BatchNorm2d see the batch of all processes; names and weights stay as they are."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncedBatchNorm2d


def unsync_batch_norms(module: nn.Module) -> None:
    """Undo ``sync_batch_norms``."""
    for layer in module.modules():
        if type(layer) is SyncedBatchNorm2d:
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
