"""The chunk form of the state-space scan and its gradient, as matrix products (SSD, arXiv 2405.21060, section 6).

Sequences lie as (B, groups, heads of a group, chunks, Q, ...), every one of them read from first to last. With l the
decays summed from the start of a token's chunk, H the state that enters the chunk and A the state that it adds,

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

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


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
