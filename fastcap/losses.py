"""Training losses, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.types import Sampled


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


def reinforce_loss(sampled: Sampled, rewards: Tensor) -> Tensor:
    """Policy gradient with the mean of an image's other samples as baseline (Luo 2020, arXiv 2003.09971).

    Args:
        sampled: K captions an image, with the log-probability of every decision.
        rewards: Score of each caption. (B, K)

    Returns:
        Minus the advantage times the log-probability, averaged over decisions. ()
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    advantage = (rewards - others).flatten()
    gained = (sampled.log_probability.masked_fill(~sampled.decided, 0.0) * advantage.unsqueeze(1)).sum()
    decisions = sampled.decided.sum()
    if sampled.length_log_probability is not None:
        gained = gained + (sampled.length_log_probability * advantage).sum()
        decisions = decisions + len(advantage)
    return -gained / decisions


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


def concept_loss(logits: Tensor, named: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of which concepts an image's captions name.

    Args:
        logits: Score of each concept. (B, C)
        named: One where a caption names the concept. (B, C)
        weights: How much each concept counts. (C,)

    Returns:
        Nats a named concept, weighted, averaged over the batch. ()
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), named, weights, reduction="sum")
    return loss / (weights * named).sum().clamp(min=1.0)
