"""Cross-modal feature alignment: bring images and captions to one space, and predict an image's concepts.

Two losses teach the image memory: a contrastive one between whole images and whole captions (CLIP, arXiv 2103.00020),
and the classification of the captions' concepts and phrases, many labels an image. A concept is a word without its
ending (visual concepts, Fang et al. 2015, arXiv 1411.4952); a phrase is a pair of neighbouring words (visual phrases,
Sadeghi and Farhadi 2011), which says what goes with what. Only ``project`` is on the way to the decoder, and it sees
the image alone: no caption can leak into what is decoded.

Decoding is guided by the concepts' probabilities (``types.Guidance``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.types import Guidance

CONTENT = 0.1  # agreement of captions on a concept, its loss weight, above which it is no function word ("on" has 0.08)
UNTRAINED = -30.0  # logit of a concept without a loss: a probability of 1e-13, finite where its weight is zero


class ConceptTable(NamedTuple):
    """The concepts and phrases of a vocabulary.

    Attributes:
        words: Number of the concept behind each word, -1 for a word without one. (V,)
        weights: Loss weight of each concept, then of each phrase; None for ones. (C + P,)
        idf: Inverse document frequency of each, an image's captions being one document; None for ones. (C + P,)
        phrases: Word ids of the pairs that are phrases, ascending. (P, 2)
    """

    words: Sequence[int]
    weights: Sequence[float] | None = None
    idf: Sequence[float] | None = None
    phrases: Sequence[tuple[int, int]] = ()


def pool(features: Tensor) -> Tensor:
    """Return the mean and the maximum over patches, side by side. (B, N, J) -> (B, 2 J)."""
    return torch.cat([features.mean(1), features.amax(1)], dim=-1)


class ConceptHead(nn.Module):
    """Predict concepts and phrases from the image memory.

    Args:
        dim: Width D of the image memory.
        table: The concepts and phrases.
    """

    words: Tensor
    weights: Tensor  # loss weights of concepts and phrases (C + P,)
    idf: Tensor  # their inverse document frequency (C + P,)
    phrases: Tensor  # of words a and b, as a * V + b, ascending (P,)

    def __init__(self, dim: int, table: ConceptTable) -> None:
        super().__init__()
        self.num_concepts, self.vocab_size = max(table.words) + 1, len(table.words)
        self.memory_head = nn.Linear(2 * dim, self.num_concepts + len(table.phrases))
        self.register_buffer("words", torch.tensor(list(table.words)), persistent=False)
        for name, values in (("weights", table.weights), ("idf", table.idf)):
            found = torch.ones(self.memory_head.out_features) if values is None else torch.tensor(list(values))
            self.register_buffer(name, found)
        codes = [before * self.vocab_size + after for before, after in table.phrases]
        self.register_buffer("phrases", torch.tensor(codes, dtype=torch.long))

    @property
    def parts(self) -> dict[str, slice]:
        """Where concepts and phrases stand among the predictions."""
        return {"concept": slice(self.num_concepts), "phrase": slice(self.num_concepts, None)}

    def targets(self, tokens: Tensor) -> Tensor:
        """Mark the concepts and phrases of each image's captions. tokens: (B, K, L); returns 0 or 1, (B, C + P)."""
        found = self.words[tokens].flatten(1) + 1  # zero for what is none
        if len(self.phrases):
            pairs = (tokens[..., :-1] * self.vocab_size + tokens[..., 1:]).flatten(1)
            place = torch.searchsorted(self.phrases, pairs).clamp_(max=len(self.phrases) - 1)
            known = self.phrases[place] == pairs
            found = torch.cat([found, (place + self.num_concepts + 1) * known], dim=1)
        marks = torch.zeros(len(tokens), len(self.weights) + 1, device=tokens.device)
        return marks.scatter_(1, found, 1.0)[:, 1:]

    def forward(self, memory: Tensor) -> Tensor:
        """Score every concept and phrase. (B, N, D) -> (B, C + P)."""
        return self.memory_head(pool(memory))

    def guidance(self, memory: Tensor) -> Guidance:
        """Return what decoding is guided by.

        Args:
            memory: Image memory. (B, N, D)

        Returns:
            Concepts and phrases without a loss weight were never trained, and have a probability of zero.
        """
        logits = self(memory).masked_fill(self.weights == 0, UNTRAINED)
        content = F.pad((self.weights[self.parts["concept"]] > CONTENT).float(), (1, len(self.phrases)))
        idf = F.pad(self.idf, (1, 0))
        return Guidance(F.pad(logits.float().sigmoid(), (1, 0)), self.words + 1, self.phrases, idf, content)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over any number of phrases."""
        found = state_dict.get(prefix + "phrases", self.phrases)
        if found.shape != self.phrases.shape:
            self.phrases = torch.empty_like(found, device=self.phrases.device)
            size = self.num_concepts + len(found)
            self.weights, self.idf = self.weights.new_ones(size), self.idf.new_ones(size)
            old = self.memory_head.weight
            self.memory_head = nn.Linear(old.shape[1], size, device=old.device, dtype=old.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        embed_dim: Width of the space where images and captions meet.
        temperature: First temperature of the similarities; learned from there (CLIP, arXiv 2103.00020).
        feature_dropout: Share of the features' channels that an image loses in training, everywhere at once (spatial
            dropout, Tompson et al. 2015, arXiv 1411.4280): against learning a small set of images by heart.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        concepts: ConceptTable,
        embed_dim: int = 128,
        temperature: float = 0.07,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout1d(feature_dropout)
        self.projection = nn.Linear(feature_dim, dim)
        self.image_head = nn.Linear(dim, embed_dim)
        self.concepts = ConceptHead(dim, concepts)
        self.text_encoder = TextEncoder(len(concepts.words), embed_dim)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def project(self, features: Tensor) -> Tensor:
        """Compute the image memory from the image alone. (B, N, feature_dim) -> (B, N, D)."""
        return self.projection(self.feature_dropout(features.mT).mT)

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
