"""The training objective: losses as pure functions, their names and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.types import Sampled, SpecialTokens


@dataclass(frozen=True)
class Objective:
    """Weights of the losses, and what they are computed on.

    Attributes:
        token_weight: Weight of the cross-entropy of the captions' tokens; zero runs no decoder.
        length_weight: Weight of the length loss.
        alignment_weight: Weight of the contrastive loss.
        concept_weight: Weight of the classification of concepts (``concepts.loss_weight``).
        phrase_weight: Likewise of phrases (``concepts.phrase_loss_weight``).
        scst_weight: Weight of self-critical training, which rewards sampled captions by their CIDEr-D; zero samples
            none.
        scst_samples: Captions sampled for each image, at least two.
        scst_temperature: Temperature of the sampled words.
        label_smoothing: Of the token loss.
        full_mask_share: Share of captions masked whole, as refinement's first step sees them.
        decoded_captions: Captions of each image that are decoded and aligned; its lengths and concepts are learnt from
            all captions of the batch, at next to no cost.
    """

    token_weight: float
    length_weight: float
    alignment_weight: float
    concept_weight: float
    phrase_weight: float
    scst_weight: float
    scst_samples: int
    scst_temperature: float
    label_smoothing: float
    full_mask_share: float
    decoded_captions: int

    def __post_init__(self) -> None:
        if self.scst_weight > 0 and self.scst_samples < 2:
            raise ValueError(f"scst_samples = {self.scst_samples} must be at least 2: the others are the baseline")

    @property
    def decodes(self) -> bool:
        """Whether any loss reaches the decoder."""
        return max(self.token_weight, self.scst_weight) > 0

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss by its name, as it is logged under ``train/loss_``."""
        return {
            "token": self.token_weight,
            "balance": 1.0,  # the decoder has weighed it
            "length": self.length_weight,
            "alignment": self.alignment_weight,
            "concept": self.concept_weight,
            "phrase": self.phrase_weight,
            "scst": self.scst_weight,
        }

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum that is minimised."""
        weights = self.weights
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def shift_right(tokens: Tensor, lengths: Tensor, special: SpecialTokens) -> tuple[Tensor, Tensor, Tensor]:
    """Make teacher forcing's input and targets.

    Args:
        tokens: Captions, PAD beyond each length. (B, L)
        lengths: Tokens of each caption. (B,)
        special: The special token ids.

    Returns:
        [BOS] and the caption (B, L + 1), the caption and [EOS] (B, L + 1), True where the loss counts (B, L + 1).
    """
    ahead = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    shown = F.pad(tokens, (1, 0), value=special.bos)
    targets = F.pad(tokens, (0, 1), value=special.pad)
    targets = targets.masked_fill(ahead == lengths.unsqueeze(1), special.eos)
    return shown, targets, ahead <= lengths.unsqueeze(1)


def token_loss(logits: Tensor, targets: Tensor, scored: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the scored positions: those hidden (CMLM, arXiv 1904.09324), or all of them.

    Args:
        logits: (B, L, V)
        targets: The true ids. (B, L)
        scored: True where the loss counts. (B, L)
        label_smoothing: Probability shared out over the vocabulary.

    Returns:
        Mean over the scored positions, in nats. ()
    """
    return F.cross_entropy(logits[scored].float(), targets[scored], label_smoothing=label_smoothing)


def scst_loss(sampled: Sampled, rewards: Tensor) -> Tensor:
    """Self-critical policy gradient (arXiv 1612.00563), an image's other samples as baseline (Luo, arXiv 2003.09971).

    Args:
        sampled: K captions an image, with the log-probability of every decision.
        rewards: Score of each caption. (B, K)

    Returns:
        Minus the advantage times the log-probability, averaged over decisions. ()
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    advantage = (rewards - others).flatten()
    gained = (sampled.log_probability.masked_fill(~sampled.decided, 0.0) * advantage.unsqueeze(1)).sum()
    gained = gained + (sampled.length_log_probability * advantage).sum()
    return -gained / (sampled.decided.sum() + len(advantage))


def length_loss(logits: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of the predicted length against each caption's.

    Args:
        logits: Scores of the lengths 1..max_length. (B, max_length)
        lengths: True lengths of the K captions of each image. (B, K)

    Returns:
        Mean over captions, in nats. ()
    """
    log_probability = F.log_softmax(logits.float(), dim=-1)
    return -log_probability.gather(1, lengths - 1).mean()


def alignment_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss (InfoNCE as in CLIP, arXiv 2103.00020), each image with several captions.

    Args:
        image: Unit vectors. (B, E)
        text: Unit vectors of K captions an image. (B, K, E)
        scale: Inverse temperature. ()

    Returns:
        Mean of caption-to-image and image-to-caption, in nats; in the latter an image's other captions are left out of
        the denominator. ()
    """
    batch, captions = text.shape[:2]
    similarity = (scale * torch.einsum("bkd,id->bki", text, image)).float()
    own = torch.arange(batch, device=image.device)
    to_image = F.cross_entropy(similarity.flatten(0, 1), own.repeat_interleave(captions))
    positive = similarity[own, :, own]
    others = similarity.masked_fill(torch.eye(batch, dtype=torch.bool, device=image.device)[:, None], -torch.inf)
    negative = others.flatten(0, 1).logsumexp(0)
    to_text = (torch.logaddexp(positive, negative[:, None].expand_as(positive)) - positive).mean()
    return (to_image + to_text) / 2


def concept_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of which concepts an image's captions hold.

    Args:
        logits: Score of each concept. (B, C)
        targets: One where a caption holds the concept. (B, C)
        weights: How much each concept counts. (C,)

    Returns:
        Nats a concept that is there, weighted, averaged over the batch. ()
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, weights, reduction="sum")
    return loss / (weights * targets).sum().clamp(min=1.0)
