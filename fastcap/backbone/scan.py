"""Selective state-space scans in plain torch.

The recurrence, per head with a scalar decay (Mamba-2 / SSD, Dao and Gu 2024, arXiv 2405.21060):

    h_t = exp(log_decay_t) h_{t-1} + x_t b_t^T        h is (P, S): P head channels, S states
    y_t = h_t c_t

``x`` is already multiplied by the step size dt, and ``log_decay`` is dt * a with a < 0. Some heads may run backwards,
from the last token to the first. Two forms: ``scan_reference`` is the recurrence itself, token by token, to compare
against and never to train with; ``ssd_scan`` is the same function as matrix products over chunks of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def scan_reference(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None = None,
    num_backward: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence one token at a time.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections; each group serves heads / groups consecutive heads. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)
        initial_state: State before each head's first token, zeros if absent. (B, heads, P, S)
        num_backward: How many heads of each group, the last ones, run from the last token to the first.

    Returns:
        Outputs (B, L, heads, P) and the state after each head's last token (B, heads, P, S).
    """
    batch, length, heads, channels = x.shape
    per_group = heads // b.shape[2]
    b, c = (t.repeat_interleave(per_group, dim=2) for t in (b, c))
    backward = torch.arange(heads, device=x.device) % per_group >= per_group - num_backward

    def turned(t: Tensor) -> Tensor:
        mask = backward.view(1, 1, heads, *[1] * (t.ndim - 3))
        return torch.where(mask, t.flip(1), t)

    x, log_decay, b, c = (turned(t) for t in (x, log_decay, b, c))
    state = x.new_zeros(batch, heads, channels, b.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        state = log_decay[:, t, :, None, None].exp() * state + x[:, t, :, :, None] * b[:, t, :, None, :]
        outputs.append((state * c[:, t, :, None, :]).sum(-1))
    return turned(torch.stack(outputs, dim=1)), state


def _summed(log_decay: Tensor, num_backward: int) -> Tensor:
    """Sum decays from each head's first token up to each token. (..., heads, Q) -> (..., heads, Q)."""
    heads = log_decay.shape[-2]
    if num_backward == 0:
        return log_decay.cumsum(-1)
    forward, backward = log_decay.split([heads - num_backward, num_backward], dim=-2)
    return torch.cat([forward.cumsum(-1), backward.flip(-1).cumsum(-1).flip(-1)], dim=-2)


def decay_weights(total: Tensor) -> Tensor:
    """Return the decay from token j (excluded) to token i where j comes before i on the head's way.

    Elsewhere the result is finite and means nothing. Differences of one sum, held between e^-80 and 1: no exponent is
    ever positive, and the exponential keeps to its fast path, which is many times faster than for -inf.

    Args:
        total: Decays summed from each head's first token up to each token. (..., Q)

    Returns:
        (..., Q, Q)
    """
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).clamp_(-80.0, 0.0).exp_()


def _visible(length: int, heads: int, num_backward: int, like: Tensor) -> Tensor:
    """One where token j comes before or is token i on the head's way, else zero. (heads or 1, Q, Q)."""
    past = torch.ones(1, length, length, dtype=like.dtype, device=like.device).tril()
    if num_backward == 0:
        return past
    return torch.cat([past.expand(heads - num_backward, -1, -1), past.mT.expand(num_backward, -1, -1)])


def ssd_scan(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    initial_state: Tensor | None = None,
    num_backward: int = 0,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Compute the same as ``scan_reference`` with matrix products (SSD, arXiv 2405.21060, section 6).

    Inside a chunk every token attends to those before it through the decay matrix; between chunks only the state
    travels, by one small triangular product over chunks. Decays are summed and the state is kept in fp32 whatever the
    inputs' precision. Heads that run backwards share all of it but the triangle's side.

    Args:
        x: Inputs times the step size. (B, L, heads, P)
        log_decay: Logarithm of the decay of each step, never positive. (B, L, heads)
        b: Input projections. (B, L, groups, S)
        c: Output projections. (B, L, groups, S)
        initial_state: State before each head's first token. (B, heads, P, S)
        num_backward: How many heads of each group, the last ones, run from the last token to the first.
        chunk_size: Tokens a chunk, about; chunks are of one size that pads least.

    Returns:
        Outputs (B, L, heads, P) in x's dtype and the final state (B, heads, P, S) in fp32 (fp64 for fp64 inputs).
    """
    batch, length, heads, channels = x.shape
    groups, states = b.shape[2], b.shape[3]
    per_group = heads // groups
    precise = torch.promote_types(x.dtype, torch.float32)
    chunks = max(1, (length + chunk_size // 2) // chunk_size)
    chunk = -(-length // chunks)
    missing = chunks * chunk - length
    if missing:
        x, b, c = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (x, b, c))
        log_decay = F.pad(log_decay, (0, 0, 0, missing))

    # (B, chunks, groups, heads of the group, Q, ...): the last two dimensions are those of the matrix products.
    x = x.reshape(batch, chunks, chunk, groups, per_group, channels).permute(0, 1, 3, 4, 2, 5)
    b = b.reshape(batch, chunks, chunk, groups, 1, states).permute(0, 1, 3, 4, 2, 5)
    c = c.reshape(batch, chunks, chunk, groups, 1, states).permute(0, 1, 3, 4, 2, 5)
    decay = log_decay.to(precise).reshape(batch, chunks, chunk, groups, per_group).permute(0, 1, 3, 4, 2)

    total = _summed(decay, num_backward)
    visible = _visible(chunk, per_group, num_backward, x)
    y = ((c @ b.mT) * visible * decay_weights(total).to(x.dtype)) @ x
    whole = decay.sum(-1)
    added = (x * (whole.unsqueeze(-1) - total).exp().unsqueeze(-1).to(x.dtype)).mT @ b
    if chunks == 1 and initial_state is None:
        final = added.to(precise)[:, 0]
    else:
        start = (
            added.new_zeros(batch, 1, groups, per_group, channels, states)
            if initial_state is None
            else initial_state.reshape(batch, 1, groups, per_group, channels, states)
        )
        # In the order in which each head meets the chunks, its initial state before all of them.
        added = torch.cat([start.to(precise), _turned(added.to(precise), num_backward, dim=3)], dim=1)
        met = F.pad(_turned(whole, num_backward, dim=3), (0, 0, 0, 0, 1, 0)).permute(0, 2, 3, 1)
        between = decay_weights(met.cumsum(-1)).tril()
        state = torch.einsum("bghzc,bcghps->bzghps", between, added)
        final = state[:, -1]
        entering = _turned(state[:, :-1], num_backward, dim=3).to(c.dtype)
        y = y + (c * total.exp().unsqueeze(-1).to(c.dtype)) @ entering.mT
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * chunk, heads, channels)[:, :length]
    return y, final.reshape(batch, heads, channels, states)


def _turned(t: Tensor, num_backward: int, dim: int) -> Tensor:
    """Reverse the chunks (dimension 1) of the heads that run backwards; heads are dimension ``dim``."""
    if num_backward == 0 or t.shape[1] == 1:
        return t
    forward, backward = t.split([t.shape[dim] - num_backward, num_backward], dim=dim)
    return torch.cat([forward, backward.flip(1)], dim=dim)
