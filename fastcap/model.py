"""FastCap, the model: an image in, a caption out. No Lightning, no Hydra."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcap.alignment.cmfa import CrossModalFeatureAlignment
from fastcap.generation.beam import BeamSearch
from fastcap.generation.icmr import ICMRDecoder
from fastcap.generation.ngrams import NGrams
from fastcap.types import IMAGE_MEAN, IMAGE_STD, CausalDecoder, Guidance, MaskedDecoder, Refinement, Sampled


class FastCap(nn.Module):
    """Backbone, alignment, decoder and length predictor, with the refinement that drives them.

    Args:
        backbone: Images (B, 3, H, W), normalized, to features (B, N, feature_dim).
        alignment: Features to image memory (B, N, D).
        decoder: Image memory and captions to scores of their words.
        length: Image memory to length logits (B, max_length).
        refinement: Generation; it owns no weights and drives ``decoder`` itself.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        backbone: Any,
        alignment: CrossModalFeatureAlignment,
        decoder: MaskedDecoder | CausalDecoder,
        length: nn.Module,
        refinement: ICMRDecoder | BeamSearch,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.alignment = alignment
        self.decoder = decoder
        self.length = length
        self.refinement = refinement
        self.ngrams = NGrams(decoder.vocab_size)
        self.register_buffer("image_mean", 255 * torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", 255 * torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Compute the image memory from the image alone. uint8 (B, 3, H, W) -> (B, N, D)."""
        return self.alignment.project(self.backbone(self.normalize(images)))

    def encode_map(self, features: Tensor) -> Tensor:
        """Encode images from the maps of a frozen backbone. (B, h, w, feature_dim) -> (B, N, D)."""
        return self.alignment.project(self.backbone.from_map(features.to(self.image_mean.dtype)))

    def normalize(self, images: Tensor) -> Tensor:
        """Bring pixels to zero mean and unit deviation, as of ImageNet. uint8 -> float, (B, 3, H, W)."""
        return (images.to(self.image_mean.dtype) - self.image_mean) / self.image_std

    def decode(
        self,
        memory: Tensor,
        num_steps: int | None = None,
        length_beam: int | None = None,
        record_steps: bool = False,
    ) -> Refinement:
        """Caption encoded images: the one way to captions, which an export traces.

        Args:
            memory: Image memory, from ``encode``. (B, N, D)
            num_steps: Decoder passes, if not those of the configuration.
            length_beam: Length candidates an image, if not those of the configuration.
            record_steps: Keep every refinement step.

        Raises:
            ValueError: If a number is below one, or the decoder is autoregressive and takes none.
        """
        guidance: Guidance | None = None
        if self.refinement.guidance_weights.weighed:
            guidance = self.alignment.concepts.guidance(memory)
        options = self.ngrams, guidance, num_steps, length_beam, record_steps
        # build_model pairs refinements and decoders that fit.
        return self.refinement.generate(self.decoder, memory, self.length(memory), *options)  # type: ignore[arg-type]

    def sample(self, memory: Tensor, num_samples: int, temperature: float = 1.0) -> Sampled:
        """Sample captions by the refinement that ``decode`` runs, for training on rewards."""
        assert isinstance(self.refinement, ICMRDecoder)  # build_module rewards no other
        lengths, ngrams = self.length(memory), self.ngrams
        return self.refinement.sample(self.decoder, memory, lengths, num_samples, temperature, ngrams)  # type: ignore[arg-type]

    def forward(self, images: Tensor, record_steps: bool = False) -> Refinement:
        """Caption images. images: uint8 (B, 3, H, W)."""
        return self.decode(self.encode(images), record_steps=record_steps)

    def num_parameters(self) -> int:
        """Count the parameters that captioning reads: what only training's losses use is left out."""
        parts = [self.backbone, self.alignment.projection, self.decoder, self.length]
        if self.refinement.guidance_weights.weighed:
            parts.append(self.alignment.concepts.memory_head)
        return sum(p.numel() for part in parts for p in part.parameters())
