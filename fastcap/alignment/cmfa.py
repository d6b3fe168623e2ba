"""Cross-modal feature alignment: in training, images and captions are pulled to one place.

Two losses pull: a contrastive one between whole images and whole captions (CLIP, arXiv 2103.00020), and one that lets
the image name its captions' words (visual concepts, Fang et al. 2015, arXiv 1411.4952) and, where there are any, their
phrases: pairs of neighbouring words (visual phrases, Sadeghi and Farhadi 2011), which say what goes with what.
Only ``project`` is on the way to the decoder, and it sees the image alone: no caption can leak into what is decoded.
Where the channels that name things are of their own (``judge_dim``), the decoder has not seen them: what it mistakes,
they need not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.types import Encoded, Judges
from fastcap.utils.search import find

UNLEARNT = -30.0  # logit of a concept that no loss weighs: a probability of 1e-13, finite where it is weighed by zero


class TextEncoder(nn.Module):
    """A caption as one vector: the mean of its words' embeddings, then two layers (deep averaging network, Iyyer 2015).

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


def summary(features: Tensor) -> Tensor:
    """Mean and maximum over patches, side by side. (B, N, J) -> (B, 2 J)."""
    return torch.cat([features.mean(1), features.amax(1)], dim=-1)


def _widened(head: nn.Linear, out_features: int) -> nn.Linear:
    return nn.Linear(head.in_features, out_features, device=head.weight.device, dtype=head.weight.dtype)


class CrossModalFeatureAlignment(nn.Module):
    """Bring patch features to the decoder's width, and give both modalities' embeddings for a contrastive loss.

    Args:
        feature_dim: Width of the backbone's features.
        dim: Width D of the image memory (the decoder's).
        concepts: Number of the concept behind each word, -1 for a word without one. (V,)
        embed_dim: Width of the space where images and captions meet.
        temperature: First temperature of the similarities; learned from there (CLIP, arXiv 2103.00020).
        concept_weights: How far images decide each concept; all ones if left out. (C,)
        phrases: Word ids of the pairs that are phrases, ascending. (P, 2)
        phrase_weights: How far images decide each phrase. (P,)
        feature_dropout: Share of the features' channels that an image loses in training, everywhere at once (spatial
            dropout, Tompson et al. 2015, arXiv 1411.4280): against learning a small set of images by heart.
        judge_dim: Width J of further channels behind the features, for naming concepts and phrases when captions are
            written; zero names them from the memory. They lose other channels than the memory in training.
    """

    word_concepts: Tensor
    concept_weights: Tensor  # of concepts and phrases (C + P,)
    phrases: Tensor  # of words a and b, as a * V + b, ascending (P,)

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        concepts: Sequence[int],
        embed_dim: int = 128,
        temperature: float = 0.07,
        concept_weights: Sequence[float] | None = None,
        phrases: Sequence[tuple[int, int]] = (),
        phrase_weights: Sequence[float] = (),
        feature_dropout: float = 0.0,
        judge_dim: int = 0,
    ) -> None:
        super().__init__()
        if judge_dim < 0:
            raise ValueError(f"alignment.judge_dim = {judge_dim} must not be negative")
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.widths = [dim, judge_dim]
        self.projection = nn.Linear(feature_dim, dim + judge_dim)
        self.image_head = nn.Linear(dim, embed_dim)
        self.num_concepts, self.vocab_size = max(concepts) + 1, len(concepts)
        self.concept_head = nn.Linear(2 * dim, self.num_concepts + len(phrases))
        self.judge_head = nn.Linear(2 * judge_dim, self.num_concepts + len(phrases)) if judge_dim else None
        self.register_buffer("word_concepts", torch.tensor(list(concepts)), persistent=False)
        weights = torch.ones(self.num_concepts) if concept_weights is None else torch.tensor(list(concept_weights))
        self.register_buffer("concept_weights", torch.cat([weights, torch.tensor(list(phrase_weights))]))
        codes = [before * self.vocab_size + after for before, after in phrases]
        self.register_buffer("phrases", torch.tensor(codes, dtype=torch.long))
        self.text_encoder = TextEncoder(len(concepts), embed_dim)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def project(self, features: Tensor) -> Encoded:
        """Make the image memory, and what concepts are named from, from the image alone. (B, N, feature_dim)."""
        if self.judge_head is None:
            memory = self.projection(self._drop(features))
            return Encoded(memory, summary(memory))
        if not self.training:
            memory, judging = self.projection(features).split(self.widths, dim=-1)
            return Encoded(memory, summary(judging))
        weights, biases = (t.split(self.widths) for t in (self.projection.weight, self.projection.bias))
        memory = F.linear(self._drop(features), weights[0], biases[0])
        if not self.judge_head.weight.requires_grad:
            return Encoded(memory, None)
        return Encoded(memory, summary(F.linear(self._drop(features), weights[1], biases[1])))

    def _drop(self, features: Tensor) -> Tensor:
        """Leave out channels in training, each everywhere at once. (B, N, C) to the same."""
        if not self.training:
            return features
        return features * self.feature_dropout(features.new_ones(len(features), 1, features.shape[2]))

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

    def judges(self, encoded: Encoded) -> Judges:
        """What generation may ask about images.

        Concepts and phrases are scored at the first question about them, and once.
        """
        probability = cache(partial(self.concept_probability, encoded.seen))
        return Judges(
            naming=lambda tokens, lengths: self.naming(probability(), tokens, lengths),
            likely=lambda: self.word_probability(probability()),
            phrases=lambda before, after: self.phrase_probability(probability(), before, after),
        )

    def naming(self, probability: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tell how many of the concepts and phrases of captions are expected to be people's too, by the image alone.

        Args:
            probability: From ``concept_probability``. (B, 1 + C + P)
            tokens: Caption ids. (B, K, L)
            lengths: Content tokens of each caption. (B, K)

        Returns:
            Sum of the probabilities of each caption's concepts and phrases, each counted once. (B, K)
        """
        inside = torch.arange(tokens.shape[2], device=tokens.device) < lengths.unsqueeze(-1)
        concepts = (self.word_concepts[tokens] + 1) * inside
        phrases = self._place(tokens[..., :-1], tokens[..., 1:]) * inside[..., 1:]
        places = torch.cat([concepts, phrases], dim=2)
        named = probability.new_zeros(*tokens.shape[:2], probability.shape[1]).scatter_(2, places, 1.0)
        return (named * probability.unsqueeze(1)).sum(2)

    def word_probability(self, probability: Tensor) -> Tensor:
        """Hand the concepts' probabilities (B, 1 + C + P) to their words, zero to words without one: (B, V)."""
        return probability[:, self.word_concepts + 1]

    def phrase_probability(self, probability: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Tell how probable it is that people write neighbouring words of captions, by the image alone.

        Args:
            probability: From ``concept_probability``. (B, 1 + C + P)
            before: Word ids of K captions an image; V, a caption's end, is part of no phrase. (B * K, ...)
            after: Of the words that follow; both broadcast together. (B * K, ...)

        Returns:
            Zero where two words are no phrase. (B * K, ...)
        """
        captions, images = before.shape[0], probability.shape[0]
        rows = torch.arange(captions, device=before.device) // (captions // images)
        return probability[rows.view(-1, *[1] * (before.dim() - 1)), self._place(before, after)]

    def _place(self, before: Tensor, after: Tensor) -> Tensor:
        """Where phrases stand in ``concept_probability``; zero for what is none. Ids, which broadcast together."""
        wanted = (before * self.vocab_size + after).where(after < self.vocab_size, -1)
        if not self.phrases.numel():
            return torch.zeros_like(wanted)
        at, known = find(self.phrases, wanted)
        return (at + self.num_concepts + 1) * known

    def concept_probability(self, seen: Tensor | None) -> Tensor:
        """Tell how probable it is that people name each concept and phrase, with a zero in front for what is none.

        seen: ``Encoded.seen``; returns (B, 1 + C + P).
        """
        return F.pad(self.concept_logits(seen).float().sigmoid(), (1, 0))

    def concept_logits(self, seen: Tensor | None) -> Tensor:
        """Score concepts, then phrases. seen: ``Encoded.seen``; returns (B, C + P).

        Concepts without a weight were never learnt: an image has none of them.

        Raises:
            ValueError: If the images were encoded in training, where nothing is named.
        """
        if seen is None:
            raise ValueError("concepts cannot be named: the images were encoded in training, without what judges see")
        logits = (self.judge_head or self.concept_head)(seen)
        return logits.masked_fill(self.concept_weights == 0, UNLEARNT)

    def name_concepts(self, encoded: Encoded, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Score which concepts and phrases the image's captions name (training only).

        Args:
            encoded: Images, from ``project``.
            tokens: Caption ids. (B, K, L)

        Returns:
            Truth, logits from the memory, and logits from the channels that only judge, if they learn; all (B, C + P).
        """
        if self.judge_head is None:
            logits, judged = self.concept_head(encoded.seen), None
        else:
            logits = self.concept_head(summary(encoded.memory))
            judged = None if encoded.seen is None else self.judge_head(encoded.seen)
        concepts, phrases = self.word_concepts[tokens] + 1, self._place(tokens[..., :-1], tokens[..., 1:])
        named = torch.cat([concepts, phrases], dim=2).flatten(1)
        truth = torch.zeros(len(logits), logits.shape[1] + 1, device=logits.device)
        return truth.scatter_(1, named, 1.0)[:, 1:], logits, judged

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over any number of phrases."""
        found = state_dict.get(prefix + "phrases", self.phrases)
        if found.shape != self.phrases.shape:
            self.phrases = torch.empty_like(found, device=self.phrases.device)
            size = self.num_concepts + len(found)
            self.concept_weights = self.concept_weights.new_ones(size)
            self.concept_head = _widened(self.concept_head, size)
            self.judge_head = self.judge_head and _widened(self.judge_head, size)
        super()._load_from_state_dict(state_dict, prefix, *args)
