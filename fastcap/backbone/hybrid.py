"""SpatialMamba behind a pretrained convolutional encoder: cross-scan blocks over its 14 x 14 and 7 x 7 levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.efficientnet_lite import EfficientNetLite
from fastcap.backbone.spatial_mamba import CrossScanMixer, GridPosition, SpatialMambaBlock

_LEVELS = (3, 4)  # timm's: strides 16 and 32


class HybridSpatialMamba(EfficientNetLite):
    """Scan the features of a frozen EfficientNet-Lite with SpatialMamba blocks: (B, 3, H, W) to (B, N, dim), stride 32.

    Hybrids keep convolutions where resolution is high and mix tokens where it is low (early convolutions, Xiao et al.
    2021, arXiv 2106.14881; MambaVision, arXiv 2407.08083). Here the convolutions keep their ImageNet weights,
    so ``feature_map`` can be computed once for each image and only what follows it is trained: normalization, a
    projection of all levels to ``dim``, cross-scan blocks at stride 16 whose result is added at stride 32, and
    cross-scan blocks there.

    Args:
        variant: Size of the EfficientNet-Lite, 0 to 2.
        pretrained: Load its packaged ImageNet weights.
        dim: Width D of the features.
        depth: Cross-scan blocks at stride 32.
        fine_dim: Width at stride 16.
        fine_depth: Cross-scan blocks there; zero has none, and the projection alone reads that level.
        feature_dropout: Share of the encoder's channels that an image loses in training, everywhere at once (spatial
            dropout, arXiv 1411.4280).
        d_state: States of each head.
        head_dim: Channels of each head.
        expand: Inner width of a mixer over the block's width.
        ffn_ratio: Hidden width of a block's FFN over its width.
    """

    def __init__(
        self,
        variant: int = 0,
        pretrained: bool = True,
        dim: int = 256,
        depth: int = 1,
        fine_dim: int = 128,
        fine_depth: int = 1,
        feature_dropout: float = 0.0,
        d_state: int = 16,
        head_dim: int = 32,
        expand: float = 1.0,
        ffn_ratio: float = 2.0,
    ) -> None:
        super().__init__(variant, pretrained, frozen=True, position=False, levels=_LEVELS)

        def blocks(width: int, number: int) -> nn.Sequential:
            mixers = (CrossScanMixer(width, d_state, head_dim, expand) for _ in range(number))
            return nn.Sequential(*(SpatialMambaBlock(width, mixer, ffn_ratio, 0.0) for mixer in mixers))

        fine, _ = (self.net.feature_info[level]["num_chs"] for level in _LEVELS)
        last = self.net.num_features
        self.full_dim, self.feature_dim = self.feature_dim, dim
        # feature_map gives the last layer's channels, then stride 16's four neighbours side by side, then stride 32's.
        self._fine_channels = slice(last, last + 4 * fine)
        self.normalize = nn.BatchNorm2d(self.full_dim)
        self.drop = nn.Dropout(feature_dropout)
        self.project = nn.Linear(self.full_dim, dim)
        self.scan_position = GridPosition(dim)
        self.fine_blocks: nn.Sequential | None = None
        if fine_depth:
            self.fine_project = nn.Linear(fine, fine_dim)
            self.fine_position = GridPosition(fine_dim)
            self.fine_blocks = blocks(fine_dim, fine_depth)
            self.fine_merge = nn.Sequential(nn.LayerNorm(4 * fine_dim), nn.Linear(4 * fine_dim, dim))
        self.scan_blocks = blocks(dim, depth)
        self.feature_norm = nn.LayerNorm(dim)
        self.feature_position = GridPosition(dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All cross-scan blocks, in the order in which they run."""
        return [*(self.fine_blocks or ()), *self.scan_blocks]

    def from_map(self, features: Tensor) -> Tensor:
        """Do what comes after ``feature_map``: all that is trained. (B, h, w, full_dim) -> (B, N, dim)."""
        x = self.normalize(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.training:  # the same channels at every patch
            x = x * self.drop(x.new_ones(len(x), 1, 1, x.shape[-1]))
        mixed = self.scan_position(self.project(x))
        if self.fine_blocks is not None:
            grid = x[..., self._fine_channels].permute(0, 3, 1, 2)
            fine = F.pixel_shuffle(grid, 2).permute(0, 2, 3, 1)
            fine = self.fine_blocks(self.fine_position(self.fine_project(fine)))
            mixed = mixed + self.fine_merge(F.pixel_unshuffle(fine.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        mixed = self.scan_blocks(mixed)
        return self.feature_position(self.feature_norm(mixed)).flatten(1, 2)
