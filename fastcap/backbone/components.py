"""Principal components of a frozen encoder's features: fewer channels, found without a caption."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


class PrincipalComponents(nn.Module):
    """Project features onto the directions in which they vary most (Pearson 1901; Hotelling 1933).

    Channels are standardised first (levels and encoders differ in scale). Nothing here is trained, and no caption is
    looked at: a projection learnt behind it has fewer weights to learn a small set of images by heart with than one
    from all channels. Components are left in proportion, about one in standard deviation as a whole. Until ``fit`` the
    directions are drawn by chance.

    Args:
        feature_dim: Channels C of the features.
        num_components: Channels D kept.

    Raises:
        ValueError: If more are to be kept than there are.
    """

    fitted: Tensor

    def __init__(self, feature_dim: int, num_components: int) -> None:
        super().__init__()
        if not 0 < num_components <= feature_dim:
            raise ValueError(f"backbone.components = {num_components} must lie between 1 and {feature_dim}")
        self.project = nn.Linear(feature_dim, num_components).requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_only_with_weights)

    def forward(self, features: Tensor) -> Tensor:
        """Project features. (..., C) -> (..., D)."""
        return self.project(features)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Find the components of some images' features.

        Args:
            batches: Features of a few images each. (B, h, w, C)
        """
        mean, covariance = _moments(batches)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a channel that never changes
        correlation = (covariance / torch.outer(deviation, deviation)).double().numpy()
        # NumPy's: torch's does not always converge where channels are constant or images few.
        upwards = (torch.from_numpy(found).float() for found in np.linalg.eigh(correlation))
        variances, directions = (found.flip(-1)[..., : self.project.out_features] for found in upwards)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        scale = variances.clamp(min=0).sqrt().mean().clamp(min=1e-6)
        basis = (directions * largest.sign()).T / deviation / scale
        self.project.weight.copy_(basis)
        self.project.bias.copy_(-basis @ mean)
        self.fitted.fill_(True)


def _moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of channels over all patches. batches: (B, h, w, C) each."""
    total = products = near = torch.zeros(())
    count = 0
    for batch in batches:
        rows = batch.flatten(0, -2).float().cpu()
        if not count:  # sums of squares around a point near the mean keep their precision
            near, total = rows.mean(0), torch.zeros(rows.shape[1])
            products = torch.zeros(rows.shape[1], rows.shape[1])
        rows = rows - near
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
        count += len(rows)
    mean = total / count
    return near + mean, products.div_(count).sub_(torch.outer(mean, mean))


def _only_with_weights(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Keep ``fitted`` as it is where a checkpoint's components are of another size and were left out."""
    if f"{prefix}project.weight" not in state:
        state.pop(f"{prefix}fitted", None)
