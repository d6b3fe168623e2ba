"""Several encoders of the same image, their features side by side (Eagle: Shi et al. 2024, arXiv 2408.15998)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.timm_encoder import GridEncoder


class ConcatEncoder(GridEncoder):
    """Concatenate the features of several encoders, patch by patch: (B, 3, H, W) to (B, N, D), D the sum of theirs.

    Encoders trained apart make different mistakes; what one misses another may see.

    Args:
        encoders: At least two, each with neither ``norm`` nor ``position``: those belong to the whole. The grid is the
            first one's; others' are resized to it.
        position: Add a learned code of the grid position to the features.
        norm: Normalize every channel (BatchNorm).

    Raises:
        ValueError: If there are fewer than two encoders, or one has a norm or a position code of its own.
    """

    def __init__(
        self,
        encoders: Sequence[GridEncoder],
        position: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if len(encoders) < 2:
            raise ValueError(f"backbone.encoders: at least two are needed, found {len(encoders)}")
        for index, encoder in enumerate(encoders):
            if encoder.norm is not None or encoder.position is not None:
                raise ValueError(
                    f"backbone.encoders.{index}: norm and position must be left out, those of the whole come after"
                )
        self.net = nn.ModuleList(encoders)
        self._finish(sum(encoder.feature_dim for encoder in encoders), norm, position)

    @property
    def frozen(self) -> bool:
        """Whether all encoders keep their weights as they are."""
        return all(getattr(encoder, "frozen", False) for encoder in self.net)

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute the features on the first encoder's grid. (B, 3, H, W) -> (B, h, w, C)."""
        first, *others = (cast(GridEncoder, encoder).feature_map(images) for encoder in self.net)
        return torch.cat([first, *(_resized(features, first) for features in others)], dim=-1)


def _resized(features: Tensor, like: Tensor) -> Tensor:
    """Bring a grid (B, h, w, D) to another's height and width."""
    size = like.shape[1:3]
    if features.shape[1:3] == size:
        return features
    return F.interpolate(features.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
