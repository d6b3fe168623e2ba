"""SpatialMamba: a hierarchical vision state-space backbone, alone or behind a pretrained convolutional encoder.

Each block mixes tokens with a selective scan in four directions (VMamba, arXiv 2401.10166) whose recurrence runs as
matrix products (SSD, arXiv 2405.21060), then mixes channels with an FFN. Cost is linear in the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute, StochasticDepth

from fastcap.backbone.scan import NUM_DIRECTIONS, GridPosition, grid_scan
from fastcap.backbone.timm_encoder import TimmEncoder, apart, side_by_side


class CrossScanMixer(nn.Module):
    """Gated selective scan, its heads shared out over the four directions.

    With heads shared out, a direction scans a quarter of the channels and the cross-scan costs one scan. The state's
    input and output projections b and c belong to the patch, whatever the direction it is visited from.

    Args:
        dim: Width D.
        d_state: States S of each head.
        head_dim: Channels P of each head.
        expand: Inner width over D.
        d_conv: Side of the depthwise convolution before the scan.
        chunk_size: Tokens a chunk of the scan.

    Raises:
        ValueError: If the heads do not fill the inner width, or do not divide over the four directions.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        head_dim: int = 32,
        expand: float = 2.0,
        d_conv: int = 3,
        chunk_size: int = 32,
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
        self.conv_dim = self.inner_dim + 2 * d_state
        self.in_proj = nn.Linear(dim, self.inner_dim + self.conv_dim + self.num_heads, bias=False)
        conv = nn.Conv2d(self.conv_dim, self.conv_dim, d_conv, padding=d_conv // 2, groups=self.conv_dim)
        self.conv = conv.to(memory_format=torch.channels_last)  # as its input lies; DDP wants gradients to lie so too
        self.norm = nn.LayerNorm(self.inner_dim)
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=False)
        # Mamba-2's initialisation: step sizes log-uniform in [0.001, 0.1], decay rates uniform in [1, 16].
        step = torch.exp(torch.rand(self.num_heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.a_log = nn.Parameter(torch.log(torch.empty(self.num_heads).uniform_(1, 16)))
        self.skip = nn.Parameter(torch.ones(self.num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens over the grid. (B, H, W, D) -> (B, H, W, D)."""
        gate, mixed, step = self.in_proj(x).split([self.inner_dim, self.conv_dim, self.num_heads], dim=-1)
        mixed = F.silu(self.conv(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        u, b, c = mixed.split([self.inner_dim, self.d_state, self.d_state], dim=-1)
        u = u.unflatten(-1, (self.num_heads, self.head_dim))
        dt = F.softplus(step.float() + self.dt_bias.float())
        log_decay = dt * -self.a_log.float().exp()
        y = grid_scan(u * dt.to(u.dtype).unsqueeze(-1), log_decay, b, c, self.chunk_size)
        y = torch.addcmul(y, u, self.skip.to(u.dtype).unsqueeze(-1)).flatten(3)
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
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        x = x + self.drop_path(self.mixer(self.mixer_norm(x)))
        return x + self.drop_path(self.ffn(self.ffn_norm(x)))


def _convolution(in_dim: int, out_dim: int, stride: int = 2) -> nn.Sequential:
    """Convolution 3x3, BatchNorm, ReLU; stride 2 halves the grid (rounding up)."""
    convolution = nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True))


def _merging(in_dim: int, out_dim: int) -> nn.Sequential:
    """Lay 2 x 2 neighbours side by side and project them (patch merging of Swin, arXiv 2103.14030)."""
    norm, project = nn.LayerNorm(4 * in_dim), nn.Linear(4 * in_dim, out_dim)
    # The identity keeps the numbers by which checkpoints name what follows.
    return nn.Sequential(side_by_side(2), nn.Identity(), norm, project, Permute([0, 3, 1, 2]))


def _patch_embedding(dims: Sequence[int], depths: Sequence[int]) -> nn.Sequential:
    """Convolutional patch embedding: at each level one halving and depth - 1 further convolutions."""
    layers: list[nn.Module] = []
    for before, dim, depth in zip([3, *dims[:-1]], dims, depths, strict=True):
        layers.append(_convolution(before, dim))
        layers += [_convolution(dim, dim, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(*layers)


class StemLevels(nn.Module):
    """Read a pretrained stem's features for each stage: the last one all of them, each before it one level.

    Args:
        stem: With ``levels`` at twice, four times, ... the resolution of its last layer, one for each stage but the
            last.
        dims: Width of each stage.
        dropout: Share of the channels that an image loses in training, everywhere at once (spatial dropout, Tompson
            et al. 2015, arXiv 1411.4280).

    Raises:
        ValueError: If there is no level for a stage.
    """

    def __init__(self, stem: TimmEncoder, dims: Sequence[int], dropout: float) -> None:
        super().__init__()
        if stem.norm is not None or stem.position is not None:
            raise ValueError("backbone.stem: norm and position must be left out, the stages bring their own")
        # Channels of the stem's map: the last layer's, then those of each level, r x r neighbours side by side.
        parts, info, end = {1: (0, stem.feature_dim)}, stem.net.feature_info, stem.net.num_features
        for level in stem.levels:
            ratio = info[-1]["reduction"] // info[level]["reduction"]
            begin, end = end, end + ratio**2 * info[level]["num_chs"]
            parts.setdefault(ratio, (begin, end))
        self.ratios = [2**i for i in reversed(range(len(dims)))]
        if missing := [ratio for ratio in self.ratios if ratio not in parts]:
            raise ValueError(
                f"backbone.stem.levels = {stem.levels}: none is {missing[0]} times finer than the last layer"
            )
        self.parts = [parts[ratio] for ratio in self.ratios]
        self.norm = nn.BatchNorm2d(stem.feature_dim)
        self.dropout = nn.Dropout2d(dropout)
        widths = [(end - begin) // ratio**2 for ratio, (begin, end) in zip(self.ratios, self.parts, strict=True)]
        self.projections = nn.ModuleList(map(nn.Linear, widths, dims))
        self.positions = nn.ModuleList(map(GridPosition, dims))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Project and place each stage's input. (B, h, w, C) -> (B, r h, r w, D) of every stage, finest first."""
        x = self.dropout(self.norm(features.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        inputs = []
        for ratio, (begin, end), project, place in zip(
            self.ratios, self.parts, self.projections, self.positions, strict=True
        ):
            inputs.append(place(project(x if ratio == 1 else apart(x[..., begin:end], ratio))))
        return inputs


class SpatialMambaBackbone(nn.Module):
    """Stages of cross-scan blocks, the grid halved between stages, behind a stem.

    The stem is a convolutional patch embedding; or a pretrained encoder, whose levels each stage reads beside what the
    stage before it found. Convolutions where resolution is high and token mixing where it is low: early convolutions
    (Xiao et al. 2021, arXiv 2106.14881), MambaVision (arXiv 2407.08083). A frozen stem's ``feature_map`` can be
    computed once for each image; only what ``from_map`` does is then trained.

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
        stem: A pretrained encoder, frozen or tuned, in the place of the patch embedding, without norm and position of
            its own. The last stage stands on its grid and reads all its features; each stage before it needs one of
            its ``levels`` at twice the resolution of the next.
        stem_dropout: Share of its channels that an image loses in training.

    Raises:
        ValueError: If dims and depths differ in number, stem_depths does not number one more than stem_dims, or the
            stem has no level for a stage.
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
        stem: TimmEncoder | None = None,
        stem_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(dims) != len(depths):
            raise ValueError(f"backbone.dims has {len(dims)} stages and backbone.depths {len(depths)}: name as many")
        if len(stem_depths) != len(stem_dims) + 1 or min(stem_depths) < 1:
            raise ValueError(
                f"backbone.stem_depths = {list(stem_depths)} must number one more than stem_dims = {list(stem_dims)} "
                "(the last level is dims[0] wide), each at least 1"
            )
        self.feature_dim = dims[-1]
        self.stem = stem
        if stem is None:
            self.patch_embed = _patch_embedding([*stem_dims, dims[0]], stem_depths)
            self.position = GridPosition(dims[0])
        else:
            self.levels = StemLevels(stem, dims, stem_dropout)
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        halve: Callable[[int, int], nn.Module] = _convolution if stem is None else _merging
        self.downsamples = nn.ModuleList(halve(a, b) for a, b in pairwise(dims))
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims, depths, strict=True):
            blocks = []
            for _ in range(depth):
                mixer = CrossScanMixer(dim, d_state, head_dim, expand, d_conv, chunk_size)
                blocks.append(SpatialMambaBlock(dim, mixer, ffn_ratio, rates.pop(0)))
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(self.feature_dim)
        self.feature_position = GridPosition(self.feature_dim)

    @property
    def frozen(self) -> bool:
        """Whether the stem is one that keeps its weights as they are."""
        return self.stem is not None and self.stem.frozen

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into patch features.

        Args:
            images: Normalized RGB. (B, 3, H, W), any H and W of at least a patch.

        Returns:
            Features in raster order. (B, N, D), N = ceil(H / patch) * ceil(W / patch), D = ``feature_dim``
        """
        return self.from_map(self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Run the stem. (B, 3, H, W) -> (B, h, w, C)."""
        return self.patch_embed(images).permute(0, 2, 3, 1) if self.stem is None else self.stem.feature_map(images)

    def from_map(self, features: Tensor) -> Tensor:
        """Run the stages on what ``feature_map`` gives. (B, h, w, C) -> (B, N, D)."""
        inputs = [self.position(features)] if self.stem is None else self.levels(features)
        x = inputs[0]
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.downsamples[i - 1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                x = x if self.stem is None else x + inputs[i]
            x = stage(x)
        return self.feature_position(self.norm(x)).flatten(1, 2)
