"""Predict which words and phrases people would write of an image, from the image alone.

A concept is a word without its ending (visual concepts, Fang et al. 2015, arXiv 1411.4952); a phrase is a pair of
neighbouring words (visual phrases, Sadeghi and Farhadi 2011), which says what goes with what. Training classifies both,
many labels an image, and so teaches the image memory; decoding is guided by the probabilities (``types.Guidance``).
These come from the memory, or from a separate branch behind the backbone. The decoder has not seen the branch: it need
not share the decoder's mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.types import Guidance
from fastcap.utils.search import find

UNTRAINED = -30.0  # logit of a concept without a loss: a probability of 1e-13, finite where its weight is zero


class ConceptTable(NamedTuple):
    """The concepts and phrases of a vocabulary.

    Attributes:
        words: Number of the concept behind each word, -1 for a word without one. (V,)
        weights: Loss weight of each concept; None for ones. (C,)
        phrases: Word ids of the pairs that are phrases, ascending. (P, 2)
        phrase_weights: Loss weight of each phrase. (P,)
    """

    words: Sequence[int]
    weights: Sequence[float] | None = None
    phrases: Sequence[tuple[int, int]] = ()
    phrase_weights: Sequence[float] = ()


def pool(features: Tensor) -> Tensor:
    """Return the mean and the maximum over patches, side by side. (B, N, J) -> (B, 2 J)."""
    return torch.cat([features.mean(1), features.amax(1)], dim=-1)


class ConceptBranch(nn.Module):
    """Channels of their own behind the backbone, from which concepts and phrases are predicted.

    Args:
        feature_dim: Width of the backbone's features.
        dim: Channels J.
        num_outputs: Concepts and phrases.
    """

    def __init__(self, feature_dim: int, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.projection = nn.Linear(feature_dim, dim)
        self.head = nn.Linear(2 * dim, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Pool the branch's channels. (B, N, feature_dim) -> (B, 2 J)."""
        return pool(self.projection(features))


class ConceptHead(nn.Module):
    """Predict concepts and phrases from the image memory and, if there is one, from a separate branch.

    Args:
        feature_dim: Width of the backbone's features.
        dim: Width D of the image memory.
        table: The concepts and phrases.
        branch_dim: Channels of the branch; zero has none, and decoding then takes what the memory predicts.

    Raises:
        ValueError: If ``branch_dim`` is negative.
    """

    words: Tensor
    weights: Tensor  # loss weights of concepts and phrases (C + P,)
    phrases: Tensor  # of words a and b, as a * V + b, ascending (P,)

    def __init__(self, feature_dim: int, dim: int, table: ConceptTable, branch_dim: int = 0) -> None:
        super().__init__()
        if branch_dim < 0:
            raise ValueError(f"concepts.branch_dim = {branch_dim} must not be negative")
        self.num_concepts, self.vocab_size = max(table.words) + 1, len(table.words)
        outputs = self.num_concepts + len(table.phrases)
        self.memory_head = nn.Linear(2 * dim, outputs)
        self.branch = ConceptBranch(feature_dim, branch_dim, outputs) if branch_dim else None
        self.register_buffer("words", torch.tensor(list(table.words)), persistent=False)
        weights = torch.ones(self.num_concepts) if table.weights is None else torch.tensor(list(table.weights))
        self.register_buffer("weights", torch.cat([weights, torch.tensor(list(table.phrase_weights))]))
        codes = [before * self.vocab_size + after for before, after in table.phrases]
        self.register_buffer("phrases", torch.tensor(codes, dtype=torch.long))

    @property
    def head(self) -> nn.Linear:
        """The layer whose predictions guide decoding."""
        return self.memory_head if self.branch is None else self.branch.head

    @property
    def parts(self) -> dict[str, slice]:
        """Where concepts and phrases stand among the predictions."""
        return {"concept": slice(self.num_concepts), "phrase": slice(self.num_concepts, None)}

    # Training

    def targets(self, tokens: Tensor) -> Tensor:
        """Mark the concepts and phrases of each image's captions. tokens: (B, K, L); returns 0 or 1, (B, C + P)."""
        concepts, phrases = self.words[tokens] + 1, self._place(tokens[..., :-1], tokens[..., 1:])
        found = torch.cat([concepts, phrases], dim=2).flatten(1)
        marks = torch.zeros(len(tokens), len(self.weights) + 1, device=tokens.device)
        return marks.scatter_(1, found, 1.0)[:, 1:]

    def training_logits(self, memory: Tensor, concept_features: Tensor | None) -> dict[str, Tensor]:
        """Predict from the memory, and from the branch if it is being trained.

        Args:
            memory: Image memory. (B, N, D)
            concept_features: ``Encoded.concept_features``.

        Returns:
            Logits by the prefix of their losses' names. (B, C + P)
        """
        if self.branch is None:
            return {"": self.memory_head(concept_features)}
        logits = {"": self.memory_head(pool(memory))}
        if concept_features is not None:
            logits["branch_"] = self.branch.head(concept_features)
        return logits

    # Decoding

    def guidance(self, concept_features: Tensor | None) -> Guidance:
        """Return what decoding may ask about encoded images; they are scored at the first question, and once."""
        probability = cache(partial(self.probability, concept_features))
        return Guidance(
            word_probability=lambda: probability()[:, self.words + 1],
            bigram_probability=lambda before, after: self.bigram_probability(probability(), before, after),
            expected_matches=lambda tokens, lengths: self.expected_matches(probability(), tokens, lengths),
        )

    def probability(self, concept_features: Tensor | None) -> Tensor:
        """Predict each concept and phrase, with a zero in front for words that are none.

        Args:
            concept_features: ``Encoded.concept_features``.

        Returns:
            Probabilities; those without a loss weight were never trained, and are zero. (B, 1 + C + P)

        Raises:
            ValueError: If the images were encoded in training, where a frozen branch is left out.
        """
        if concept_features is None:
            raise ValueError("concepts cannot be predicted: the images were encoded in training")
        logits = self.head(concept_features).masked_fill(self.weights == 0, UNTRAINED)
        return F.pad(logits.float().sigmoid(), (1, 0))

    def bigram_probability(self, probability: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Look up the phrases that neighbouring words make.

        Args:
            probability: From ``probability``. (B, 1 + C + P)
            before: Word ids of K captions an image; V, a caption's end, is part of no phrase. (B * K, ...)
            after: Of the words that follow; both broadcast together. (B * K, ...)

        Returns:
            Zero where two words are no phrase. (B * K, ...)
        """
        captions, images = before.shape[0], probability.shape[0]  # len() would fix both while torch.export traces
        rows = torch.arange(captions, device=before.device) // (captions // images)
        return probability[rows.view(-1, *[1] * (before.dim() - 1)), self._place(before, after)]

    def expected_matches(self, probability: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Count how many concepts and phrases of captions people are expected to write too.

        Args:
            probability: From ``probability``. (B, 1 + C + P)
            tokens: Caption ids. (B, K, L)
            lengths: Content tokens of each caption. (B, K)

        Returns:
            Sum of the probabilities of each caption's concepts and phrases, each counted once. (B, K)
        """
        inside = torch.arange(tokens.shape[2], device=tokens.device) < lengths.unsqueeze(-1)
        concepts = (self.words[tokens] + 1) * inside
        phrases = self._place(tokens[..., :-1], tokens[..., 1:]) * inside[..., 1:]
        places = torch.cat([concepts, phrases], dim=2)
        marks = probability.new_zeros(*tokens.shape[:2], probability.shape[1]).scatter_(2, places, 1.0)
        return (marks * probability.unsqueeze(1)).sum(2)

    def _place(self, before: Tensor, after: Tensor) -> Tensor:
        """Find phrases in ``probability``; zero for pairs that are none. Ids, which broadcast together."""
        wanted = (before * self.vocab_size + after).where(after < self.vocab_size, -1)
        if not self.phrases.numel():
            return torch.zeros_like(wanted)
        place, known = find(self.phrases, wanted)
        return (place + self.num_concepts + 1) * known

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over any number of phrases."""
        found = state_dict.get(prefix + "phrases", self.phrases)
        if found.shape != self.phrases.shape:
            self.phrases = torch.empty_like(found, device=self.phrases.device)
            size = self.num_concepts + len(found)
            self.weights = self.weights.new_ones(size)
            for owner, name in ((self, "memory_head"), (self.branch, "head")):
                if owner is not None:
                    old: nn.Linear = getattr(owner, name)
                    new = nn.Linear(old.in_features, size, device=old.weight.device, dtype=old.weight.dtype)
                    setattr(owner, name, new)
        super()._load_from_state_dict(state_dict, prefix, *args)
