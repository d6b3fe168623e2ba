"""Attention over caption tokens and over patches: Rank-Augmented Linear Attention (RALA), and softmax beside it.

RALA (Fan et al., CVPR 2025, arXiv 2411.07635), per head of width d over n tokens, kappa(t) = ELU(t) + 1:

    s_j = d^-1/2 <mean_i kappa(Q_i), kappa(K_j)>        alpha = n softmax(s)
    buffer = 1/n sum_j alpha_j kappa(K_j)^T [V_j, 1]                                (rank of the KV buffer augmented)
    y_i = kappa(Q_i) buffer[:, :d] / (kappa(Q_i) buffer[:, d] + 1e-6)
    out = W_o((y + DWConv(V)) * phi(X))                                             (rank of the output augmented)

The paper's rotary embedding is left out: positions enter with the tokens' and the patches' own embeddings.
Every self-attention is called as (x, pad), pad None where there is none, every cross-attention as (x, prepared
memory), so that a decoder takes either kind. Cross-attention prepares image-only values once; then any number of
queries an image may share them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


def kappa(x: Tensor) -> Tensor:
    """RALA's feature map ELU(x) + 1, positive everywhere.

    Written with ``exp``: ``F.elu`` takes some ten times as long on CPUs, and in fp32 rounds what is below -17 to zero.
    """
    return x.clamp(max=0.0).exp() + F.relu(x)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def rank_augmented_buffer(query_mean: Tensor, k: Tensor, v: Tensor, pad: Tensor | None = None) -> Tensor:
    """Build RALA's key/value buffer, in fp32 whatever autocast says.

    Args:
        query_mean: Mean of kappa(Q), the global query. (B, heads, d)
        k: kappa(K). (B, heads, L, d)
        v: Values. (B, heads, L, d)
        pad: True where a token is padding: such tokens get weight zero. (B, L)

    Returns:
        Weighted key/value sums with the key sums as last column. (B, heads, d, d + 1)
    """
    with torch.autocast(k.device.type, enabled=False):
        precise = torch.promote_types(k.dtype, torch.float32)
        query_mean, k, v = query_mean.to(precise), k.to(precise), v.to(precise)
        score = (k @ query_mean.unsqueeze(-1)).squeeze(-1) * k.shape[-1] ** -0.5
        if pad is not None:
            # A finite floor keeps a row of nothing but padding finite.
            score = score.masked_fill(pad[:, None], torch.finfo(precise).min)
        # alpha / n is the softmax itself: n cancels against the mean over tokens.
        alpha = score.softmax(-1)
        if pad is not None:
            alpha = alpha.masked_fill(pad[:, None], 0.0)
        values = F.pad(v, (0, 1), value=1.0)
        return (k * alpha.unsqueeze(-1)).mT @ values


def rank_augmented_read(q: Tensor, buffer: Tensor) -> Tensor:
    """Read the buffer with kappa(Q). q: (B, heads, L, d), buffer: (B, heads, d, d + 1); returns (B, heads, L, d)."""
    with torch.autocast(q.device.type, enabled=False):
        read = q.to(buffer.dtype) @ buffer
        return (read[..., :-1] / (read[..., -1:] + EPSILON)).to(q.dtype)


class Attention(nn.Module):
    """Base of the attentions.

    Args:
        dim: Width D.
        num_heads: Heads; must divide ``dim``.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads = {num_heads} must divide the decoder's dim = {dim}")
        self.num_heads = num_heads


class RankAugmentedSelfAttention(Attention):
    """RALA over caption tokens, exact under padding; ``d_conv`` are the taps of its depthwise convolution (odd)."""

    def __init__(self, dim: int, num_heads: int = 4, d_conv: int = 5) -> None:
        super().__init__(dim, num_heads)
        self.qkvo = nn.Linear(dim, 4 * dim)
        self.conv = nn.Conv1d(dim, dim, d_conv, padding=d_conv // 2, groups=dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """Mix tokens. x: (B, L, D), pad: (B, L), True at padding; returns (B, L, D), zero at padding."""
        if pad is None:
            pad = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        keep = (~pad).unsqueeze(-1).to(x.dtype)
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        v = v * keep
        local = self.conv(v.mT).mT
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        q, k = kappa(q), kappa(k)
        count = keep.sum(1).clamp(min=1.0).unsqueeze(1)
        query_mean = (q * keep.unsqueeze(1)).sum(2) / count
        y = rank_augmented_read(q, rank_augmented_buffer(query_mean, k, v, pad))
        return self.out((merge_heads(y) + local) * gate) * keep


class RankAugmentedCrossAttention(Attention):
    """RALA from caption tokens to patches, with a global query taken from the image alone.

    The buffer then depends on nothing but the image: one (d, d + 1) matrix a head serves every refinement step and
    every caption, and a step's cost does not depend on the number of patches.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__(dim, num_heads)
        self.memory = nn.Linear(dim, 3 * dim)
        self.query = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def prepare(self, memory: Tensor) -> tuple[Tensor]:
        """Build the buffer of each image. memory: (B, N, D); returns ((B, heads, d, d + 1),)."""
        k, v, query = (split_heads(t, self.num_heads) for t in self.memory(memory).chunk(3, dim=-1))
        return (rank_augmented_buffer(kappa(query).mean(2), kappa(k), v),)

    def forward(self, x: Tensor, prepared: tuple[Tensor]) -> Tensor:
        """Read the image. x: (B, L, D), L may hold several captions of an image; returns (B, L, D)."""
        q, gate = self.query(x).chunk(2, dim=-1)
        y = rank_augmented_read(kappa(split_heads(q, self.num_heads)), *prepared)
        return self.out(merge_heads(y) * gate)


class SoftmaxSelfAttention(Attention):
    """Scaled dot-product attention over caption tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:
        """Mix tokens. x: (B, L, D), pad: (B, L), True at padding; returns (B, L, D), zero at padding."""
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=-1))
        if pad is None:
            return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        # The first key stays visible so that a row of nothing but padding stays finite.
        keep = ~pad
        visible = torch.cat([torch.ones_like(keep[:, :1]), keep[:, 1:]], dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
        return self.out(merge_heads(y)) * keep.unsqueeze(-1).to(x.dtype)


class SoftmaxCrossAttention(Attention):
    """Scaled dot-product attention from caption tokens to patches; keys and values are prepared once an image."""

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__(dim, num_heads)
        self.memory = nn.Linear(dim, 2 * dim)
        self.query = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def prepare(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project patches. memory: (B, N, D); returns keys and values, each (B, heads, N, d)."""
        k, v = (split_heads(t, self.num_heads) for t in self.memory(memory).chunk(2, dim=-1))
        return k, v

    def forward(self, x: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Read the image. x: (B, L, D), L may hold several captions of an image; returns (B, L, D)."""
        k, v = prepared
        return self.out(merge_heads(F.scaled_dot_product_attention(split_heads(self.query(x), self.num_heads), k, v)))
