"""SpatialMamba: a hierarchical vision state-space backbone that needs nothing but torch.

Each block mixes tokens with a selective scan in four directions (VMamba, arXiv 2401.10166) whose recurrence runs as
matrix products (SSD, arXiv 2405.21060), then mixes channels with an FFN. Cost is linear in the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.scan import NUM_DIRECTIONS, cross_merge, cross_scan, cross_scan_order, ssd_scan


class DropPath(nn.Module):
    """Drop a residual branch of whole samples in training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale or drop each sample. (B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


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


class CrossScanMixer(nn.Module):
    """Token mixer: gated selective scan, its heads shared out over the four directions.

    With heads shared out, a direction scans a quarter of the channels and the cross-scan costs one scan.

    Args:
        dim: Width D.
        d_state: States S of each head.
        head_dim: Channels P of each head.
        expand: Inner width over D.
        d_conv: Side of the depthwise convolution before the scan.
        chunk_size: Tokens a chunk of the scan.

    Raises:
        ValueError: If the heads do not divide over the four directions.
    """

    def __init__(
        self, dim: int, d_state: int = 16, head_dim: int = 32, expand: float = 2.0, d_conv: int = 3, chunk_size: int = 64
    ) -> None:
        super().__init__()
        self.inner_dim = int(dim * expand)
        self.num_heads = self.inner_dim // head_dim
        if self.num_heads * head_dim != self.inner_dim or self.num_heads % NUM_DIRECTIONS:
            raise ValueError(
                f"dim * expand = {self.inner_dim} must be head_dim = {head_dim} times a multiple of {NUM_DIRECTIONS}"
            )
        self.d_state = d_state
        self.head_dim = head_dim
        self.chunk_size = chunk_size
        share = self.inner_dim // NUM_DIRECTIONS + 2 * d_state
        self.scan_dim = NUM_DIRECTIONS * share
        self.in_proj = nn.Linear(dim, self.inner_dim + self.scan_dim + self.num_heads, bias=False)
        self.conv = nn.Conv2d(self.scan_dim, self.scan_dim, d_conv, padding=d_conv // 2, groups=self.scan_dim)
        self.norm = nn.LayerNorm(self.inner_dim)
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=False)
        # Mamba-2's initialisation: step sizes log-uniform in [0.001, 0.1], decay rates uniform in [1, 16].
        step = torch.exp(torch.rand(self.num_heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.a_log = nn.Parameter(torch.log(torch.empty(self.num_heads).uniform_(1, 16)))
        self.skip = nn.Parameter(torch.ones(self.num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens over the grid. (B, H, W, D) -> (B, H, W, D)."""
        batch, height, width, _ = x.shape
        length, heads = height * width, self.num_heads // NUM_DIRECTIONS
        gate, scanned, step = self.in_proj(x).split([self.inner_dim, self.scan_dim, self.num_heads], dim=-1)
        scanned = F.silu(self.conv(scanned.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        order = cross_scan_order(height, width, x.device)
        scanned = cross_scan(scanned.reshape(batch, length, NUM_DIRECTIONS, -1), order)
        step = cross_scan(step.reshape(batch, length, NUM_DIRECTIONS, heads), order)
        # Directions join the batch: (4B, N, ...), one group of heads each.
        u, b, c = scanned.flatten(0, 1).split([heads * self.head_dim, self.d_state, self.d_state], dim=-1)
        u = u.reshape(batch * NUM_DIRECTIONS, length, heads, self.head_dim)
        dt = F.softplus(step.float() + self.dt_bias.float().view(NUM_DIRECTIONS, 1, heads))
        log_decay = (dt * -self.a_log.float().exp().view(NUM_DIRECTIONS, 1, heads)).flatten(0, 1)
        dt = dt.flatten(0, 1).to(u.dtype)
        y, _ = ssd_scan(u * dt.unsqueeze(-1), log_decay, b.unsqueeze(2), c.unsqueeze(2), chunk_size=self.chunk_size)
        y = y.view(batch, NUM_DIRECTIONS, length, heads, self.head_dim)
        u = u.view(batch, NUM_DIRECTIONS, length, heads, self.head_dim)
        y = y + u * self.skip.to(u.dtype).view(NUM_DIRECTIONS, 1, heads, 1)
        y = cross_merge(y.flatten(3), order).reshape(batch, height, width, self.inner_dim)
        return self.out_proj(self.norm(y) * F.silu(gate))


class SpatialMambaBlock(nn.Module):
    """Pre-norm residual block: cross-scan mixer, then a GELU FFN."""

    def __init__(self, dim: int, mixer: CrossScanMixer, ffn_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * ffn_ratio)
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        x = x + self.drop_path(self.mixer(self.mixer_norm(x)))
        return x + self.drop_path(self.ffn(self.ffn_norm(x)))


def _halve(in_dim: int, out_dim: int, activate: bool = True) -> nn.Sequential:
    """Convolution 3x3 of stride 2 with BatchNorm: halves the grid (rounding up)."""
    layers: list[nn.Module] = [nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out_dim)]
    return nn.Sequential(*layers, nn.GELU()) if activate else nn.Sequential(*layers)


class SpatialMambaBackbone(nn.Module):
    """Convolutional patch embedding, then stages of cross-scan blocks, the grid halved between stages.

    Args:
        dims: Width of each stage; the last is ``feature_dim``.
        depths: Blocks of each stage.
        stem_stride: Pixels a patch of the first stage, a power of two.
        d_state: States S of each head.
        head_dim: Channels P of each head.
        expand: Inner width of the mixer over the stage's width.
        d_conv: Side of the depthwise convolution before the scan.
        ffn_ratio: Hidden width of the FFN over the stage's width.
        drop_path: Stochastic depth of the last block; earlier blocks rise to it linearly.
        chunk_size: Tokens a chunk of the scan.

    Raises:
        ValueError: If dims and depths differ in number, or stem_stride is no power of two of at least 2.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (1, 2, 4),
        stem_stride: int = 4,
        d_state: int = 16,
        head_dim: int = 32,
        expand: float = 2.0,
        d_conv: int = 3,
        ffn_ratio: float = 3.0,
        drop_path: float = 0.0,
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        if len(dims) != len(depths):
            raise ValueError(f"backbone.dims has {len(dims)} stages and backbone.depths {len(depths)}: name as many")
        if stem_stride < 2 or stem_stride & (stem_stride - 1):
            raise ValueError(f"backbone.stem_stride = {stem_stride} must be a power of two of at least 2")
        self.feature_dim = dims[-1]
        self.stride = stem_stride * 2 ** (len(dims) - 1)
        halvings = stem_stride.bit_length() - 1
        widths = [3, *(max(dims[0] // 2 ** (halvings - 1 - i), 16) for i in range(halvings - 1)), dims[0]]
        self.patch_embed = nn.Sequential(
            *(_halve(widths[i], widths[i + 1], activate=i + 1 < halvings) for i in range(halvings))
        )
        self.position = GridPosition(dims[0])
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        self.downsamples = nn.ModuleList(_halve(a, b, activate=False) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims, depths, strict=True):
            blocks = []
            for _ in range(depth):
                mixer = CrossScanMixer(dim, d_state, head_dim, expand, d_conv, chunk_size)
                blocks.append(SpatialMambaBlock(dim, mixer, ffn_ratio, rates.pop(0)))
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.feature_dim)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into patch features.

        Args:
            images: Standardised RGB. (B, 3, H, W), any H and W of at least ``stride``.

        Returns:
            Features in raster order. (B, N, D), N = ceil(H / stride) * ceil(W / stride), D = ``feature_dim``
        """
        x = self.patch_embed(images).permute(0, 2, 3, 1)
        x = self.position(x)
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.downsamples[i - 1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = stage(x)
        return self.norm(x.flatten(1, 2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
