"""SpatialMamba: a hierarchical vision state-space backbone that needs nothing but torch.

Each block mixes tokens with a selective scan in four directions (VMamba, arXiv 2401.10166) whose recurrence runs as
matrix products (SSD, arXiv 2405.21060), then mixes channels with an FFN. Cost is linear in the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastcap.backbone.mixer import MIXERS, CrossScanMixer


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


def _convolution(in_dim: int, out_dim: int, stride: int) -> nn.Sequential:
    """Convolution 3x3, BatchNorm, ReLU; stride 2 halves the grid (rounding up)."""
    convolution = nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True))


def _stem(dims: Sequence[int], depths: Sequence[int]) -> nn.Sequential:
    """Convolutional patch embedding: at each level one halving and depth - 1 further convolutions."""
    layers: list[nn.Module] = []
    for before, dim, depth in zip([3, *dims[:-1]], dims, depths, strict=True):
        layers.append(_convolution(before, dim, stride=2))
        layers += [_convolution(dim, dim, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(*layers)


class SpatialMambaBackbone(nn.Module):
    """Convolutional patch embedding, then stages of cross-scan blocks, the grid halved between stages.

    Args:
        dims: Width of each stage; the last is ``feature_dim``.
        depths: Blocks of each stage.
        stem_dims: Widths of the patch embedding's levels before the last, whose width is ``dims[0]``. Every level
            halves the grid: two of them make patches of 8 px.
        stem_depths: Convolutions 3x3 of each level of the patch embedding, the last included.
        d_state: States S of each head.
        head_dim: Channels P of each head.
        expand: Inner width of the mixer over the stage's width.
        d_conv: Side of the depthwise convolution before the scan.
        ffn_ratio: Hidden width of the FFN over the stage's width.
        drop_path: Stochastic depth of the last block; earlier blocks rise to it linearly.
        chunk_size: Tokens a chunk of the scan.
        mixers: Token mixer of each stage, out of ``cross_scan`` (heads shared out over the directions),
            ``full_cross_scan``, ``order_free`` and ``state_fusion``; None takes ``cross_scan`` throughout.

    Raises:
        ValueError: If dims, depths and mixers differ in number, a mixer is unknown, or stem_depths does not number one
            more than stem_dims.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (1, 2, 4),
        stem_dims: Sequence[int] = (32, 64),
        stem_depths: Sequence[int] = (1, 1, 1),
        d_state: int = 16,
        head_dim: int = 32,
        expand: float = 2.0,
        d_conv: int = 3,
        ffn_ratio: float = 3.0,
        drop_path: float = 0.0,
        chunk_size: int = 32,
        mixers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        mixers = ["cross_scan"] * len(dims) if mixers is None else mixers
        unknown = [name for name in mixers if name not in MIXERS]
        if unknown or len(mixers) != len(dims):
            raise ValueError(
                f"backbone.mixers = {list(mixers)} must name one of {', '.join(MIXERS)} for each of {len(dims)} stages"
            )
        if len(dims) != len(depths):
            raise ValueError(f"backbone.dims has {len(dims)} stages and backbone.depths {len(depths)}: name as many")
        if len(stem_depths) != len(stem_dims) + 1 or min(stem_depths) < 1:
            raise ValueError(
                f"backbone.stem_depths = {list(stem_depths)} must number one more than stem_dims = {list(stem_dims)} "
                "(the last level is dims[0] wide), each at least 1"
            )
        self.feature_dim = dims[-1]
        self.stride = 2 ** (len(stem_depths) + len(dims) - 1)
        self.patch_embed = _stem([*stem_dims, dims[0]], stem_depths)
        self.position = GridPosition(dims[0])
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        self.downsamples = nn.ModuleList(_convolution(a, b, stride=2) for a, b in pairwise(dims))
        self.stages = nn.ModuleList()
        for dim, depth, name in zip(dims, depths, mixers, strict=True):
            blocks = []
            for _ in range(depth):
                mixer = MIXERS[name](
                    dim, d_state=d_state, head_dim=head_dim, expand=expand, d_conv=d_conv, chunk_size=chunk_size
                )
                blocks.append(SpatialMambaBlock(dim, mixer, ffn_ratio, rates.pop(0)))
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.feature_dim)
        self.feature_position = GridPosition(self.feature_dim)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of all stages, in the order in which they run."""
        return [block for stage in self.stages for block in stage.children()]

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
        return self.feature_position(self.norm(x)).flatten(1, 2)
