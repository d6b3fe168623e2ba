"""The selective scan as others run it: token by token as published, and mambapy's two forms."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from fastcap.backbone.cross_scan import NUM_DIRECTIONS, direction_visits

ChannelScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Run Mamba's selective scan as published (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), token by token.

    Every channel has S decays of its own. Decays and inputs are discretised for the whole sequence, then the
    recurrence runs over the tokens and all states are read at once. The tokens are unbound once, which spares the
    gradient a table of zeros every step: in training tens of times faster than an index into the whole.

    Args:
        u: Inputs. (B, L, D)
        delta: Step sizes. (B, L, D)
        a: Decay rates, negative. (D, S)
        b: Input projections. (B, L, S)
        c: Output projections. (B, L, S)

    Returns:
        (B, L, D)
    """
    decay, added, state = _discretised(u, delta, a, b)
    states = []
    for decay_t, added_t in zip(decay.unbind(1), added.unbind(1), strict=True):
        state = decay_t * state + added_t
        states.append(state)
    return (torch.stack(states, dim=1) @ c.unsqueeze(-1)).squeeze(-1)


def selective_scan_indexed(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Run the same as the published reference code does (``selective_scan_ref`` of state-spaces/mamba).

    Every step takes its token out of the whole sequence's tensors by an index and reads the state at once. The gradient
    of such an index is a table of zeros as large as the whole, so that training costs the square of the tokens.

    Args:
        u: As in ``selective_scan``, and the others likewise. (B, L, D)
        delta: (B, L, D)
        a: (D, S)
        b: (B, L, S)
        c: (B, L, S)

    Returns:
        (B, L, D)
    """
    decay, added, state = _discretised(u, delta, a, b)
    outputs = []
    for t in range(u.shape[1]):
        state = decay[:, t] * state + added[:, t]
        outputs.append((state @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1)


def _discretised(u: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decays and inputs of every channel's states, (B, L, D, S), and the state before the first token, (B, D, S)."""
    added = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
    return (delta.unsqueeze(-1) * a).exp(), added, torch.zeros_like(added[:, 0])


def one_after_another(scan: ChannelScan, x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan a grid as ``grid_scan`` does, its four directions one after another (VMamba, arXiv 2401.10166).

    Args:
        scan: What scans one direction, as ``selective_scan``.
        x: Inputs times the step size. (B, H, W, heads, P)
        log_decay: Logarithm of the decay of each step, below zero. (B, H, W, heads)
        b: Input projections. (B, H, W, S)
        c: Output projections. (B, H, W, S)

    Returns:
        (B, H, W, heads, P)
    """
    batch, height, width, heads, channels = x.shape
    shares = x.flatten(1, 2).chunk(NUM_DIRECTIONS, dim=2), log_decay.flatten(1, 2).chunk(NUM_DIRECTIONS, dim=2)
    b, c = b.flatten(1, 2), c.flatten(1, 2)
    a = -x.new_ones(heads // NUM_DIRECTIONS * channels, b.shape[2])
    outputs = []
    for way, share, decay in zip(direction_visits(height, width, x.device), *shares, strict=True):
        # With decay rates of -1 the step size is the decay; what x was multiplied by is taken out again.
        delta = -decay[:, way].repeat_interleave(channels, dim=2)
        y = scan(share[:, way].flatten(2) / delta, delta, a, b[:, way], c[:, way])
        outputs.append(y[:, way.argsort()].unflatten(2, (-1, channels)))
    return torch.cat(outputs, dim=2).view(batch, height, width, heads, channels)


def mambapy_scans() -> dict[str, ChannelScan]:
    """Return mambapy's sequential and parallel selective scan by name, or nothing where it is not installed."""
    if importlib.util.find_spec("mambapy") is None:
        return {}
    from mambapy.mamba import MambaBlock, MambaConfig

    blocks: dict[tuple[int, ...], MambaBlock] = {}

    def scan(method: str) -> ChannelScan:
        def run(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            if a.shape not in blocks:
                blocks[tuple(a.shape)] = MambaBlock(MambaConfig(a.shape[0], 1, d_state=a.shape[1], expand_factor=1))
            y: Tensor = getattr(blocks[tuple(a.shape)], method)(u, delta, a, b, c, u.new_zeros(a.shape[0]))
            return y

        return run

    return {"mambapy_sequential": scan("selective_scan_seq"), "mambapy_parallel": scan("selective_scan")}
