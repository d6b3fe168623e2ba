"""Cross-modal feature alignment: bring images and captions to one space while training.

Two losses teach the image memory: a contrastive one between whole images and whole captions (CLIP, arXiv 2103.00020),
and the classification of the captions' words and phrases (``fastcap.alignment.concepts``). Only ``project`` is on the
way to the decoder, and it sees the image alone: no caption can leak into what is decoded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.alignment.concepts import ConceptHead, ConceptTable, pool
from fastcap.types import Encoded, Guidance


class TextEncoder(nn.Module):
    """Encode a caption: the mean of its words' embeddings, then two layers (deep averaging network, Iyyer 2015).

    Args:
        vocab_size: Words V.
        dim: Width of the embedding.
    """

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, dim)
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode captions. tokens: (B, L), lengths: (B,) at least one; returns (B, dim)."""
        pad = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        total = self.word(tokens).masked_fill(pad.unsqueeze(-1), 0.0).sum(1)
        return self.layers(total / lengths.unsqueeze(1))


class CrossModalFeatureAlignment(nn.Module):
    """Project patch features to the image memory, and embed images and captions for the contrastive loss.

    Args:
        feature_dim: Width of the backbone's features.
        dim: Width D of the image memory (the decoder's).
        concepts: The concepts and phrases to predict.
        branch_dim: Channels of a separate branch that predicts them (``concepts.branch_dim``).
        embed_dim: Width of the space where images and captions meet.
        temperature: First temperature of the similarities; learned from there (CLIP, arXiv 2103.00020).
        feature_dropout: Share of the features' channels that an image loses in training, everywhere at once (spatial
            dropout, Tompson et al. 2015, arXiv 1411.4280): against learning a small set of images by heart. Memory and
            branch lose other channels.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        concepts: ConceptTable,
        branch_dim: int = 0,
        embed_dim: int = 128,
        temperature: float = 0.07,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout1d(feature_dropout)
        self.projection = nn.Linear(feature_dim, dim)
        self.image_head = nn.Linear(dim, embed_dim)
        self.concepts = ConceptHead(feature_dim, dim, concepts, branch_dim)
        self.text_encoder = TextEncoder(len(concepts.words), embed_dim)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def project(self, features: Tensor) -> Encoded:
        """Compute the image memory and the concepts' features from the image alone. (B, N, feature_dim)."""
        memory, branch = self.projection(self.feature_dropout(features.mT).mT), self.concepts.branch
        if branch is None:
            return Encoded(memory, pool(memory))
        if self.training and not branch.head.weight.requires_grad:
            return Encoded(memory, None)
        return Encoded(memory, branch(self.feature_dropout(features.mT).mT))

    def guidance(self, encoded: Encoded) -> Guidance:
        """Return what decoding may ask about the images' concepts."""
        return self.concepts.guidance(encoded.concept_features)

    def embed(self, memory: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed images and their captions for the contrastive loss (training only).

        Args:
            memory: Image memory. (B, N, D)
            tokens: Caption ids. (B, K, L)
            lengths: Content tokens of each caption. (B, K)

        Returns:
            Unit vectors of images (B, embed_dim) and captions (B, K, embed_dim), and the scale of their similarities,
            at most 100 as in CLIP.
        """
        image = F.normalize(self.image_head(memory.mean(1)), dim=-1)
        text = F.normalize(self.text_encoder(tokens.flatten(0, 1), lengths.flatten()), dim=-1)
        return image, text.unflatten(0, tokens.shape[:2]), self.log_scale.clamp(max=math.log(100.0)).exp().squeeze()
