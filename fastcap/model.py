"""FastCap, the model: an image in, a caption out. No Lightning, no Hydra."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcap.alignment.cmfa import CrossModalFeatureAlignment
from fastcap.generation.icmr import ICMRDecoder
from fastcap.types import IMAGE_MEAN, IMAGE_STD, Encoded, Refinement


class FastCap(nn.Module):
    """Backbone, alignment, decoder and length predictor, with the refinement that drives them.

    Args:
        backbone: Images (B, 3, H, W), standardised, to features (B, N, feature_dim).
        alignment: Features to image memory (B, N, D).
        decoder: A ``Denoiser`` that also has a training ``forward``.
        length: Image memory to length logits (B, max_length).
        refinement: Generation; it owns no weights and drives ``decoder`` itself.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        backbone: Any,
        alignment: CrossModalFeatureAlignment,
        decoder: nn.Module,
        length: nn.Module,
        refinement: ICMRDecoder,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.alignment = alignment
        self.decoder: Any = decoder
        self.length = length
        self.refinement = refinement
        self.register_buffer("image_mean", 255 * torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Encoded:
        """Make the image memory and all else that captions need, from the image alone. images: uint8 (B, 3, H, W)."""
        return self.alignment.project(self.backbone(self.standardise(images)))

    def encode_map(self, features: Tensor) -> Encoded:
        """Do so from the maps of a frozen backbone. features: (B, h, w, feature_dim)."""
        return self.alignment.project(self.backbone.from_map(features.to(self.image_mean.dtype)))

    def standardise(self, images: Tensor) -> Tensor:
        """Bring pixels to zero mean and unit deviation, as of ImageNet. uint8 -> float, (B, 3, H, W)."""
        return (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std

    def generate(self, images: Tensor, record_steps: bool = False) -> Refinement:
        """Caption images. images: uint8 (B, 3, H, W)."""
        return self.describe(self.encode(images), record_steps)

    def describe(self, encoded: Encoded, record_steps: bool = False) -> Refinement:
        """Caption images already encoded."""
        memory, judges = encoded.memory, self.alignment.judges(encoded)
        return self.refinement.generate(self.decoder, memory, self.length(memory), record_steps, judges)

    def forward(self, images: Tensor) -> Refinement:
        """Caption images. images: uint8 (B, 3, H, W)."""
        return self.generate(images)
