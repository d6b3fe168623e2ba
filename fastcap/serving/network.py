"""What a ``Captioner`` asks of the network behind it, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass
class Draft:
    """One refinement step of a batch, kept on request.

    Attributes:
        tokens: Draft after the step, before re-masking. (B, L)
        confidence: Probability of each drafted token. (B, L)
        remasked: True where the step masked the token again. (B, L)
    """

    tokens: np.ndarray
    confidence: np.ndarray
    remasked: np.ndarray


@dataclass
class Decoded:
    """Captions of a batch: ``fastcap.types.Refinement`` in numpy.

    Attributes:
        tokens: Content token ids, PAD beyond each length. (B, L)
        lengths: Content tokens of each caption. (B,)
        scores: Mean log-probability of each caption's tokens. (B,)
        drafted_lengths: Content tokens as the drafts have them. (B,)
        drafts: Every step, when recording was asked for.
        expert_weights: Weight of each expert for each image, where there are experts. (B, E)
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    drafted_lengths: np.ndarray
    drafts: list[Draft] = field(default_factory=list)
    expert_weights: np.ndarray | None = None


class Network(Protocol):
    """A trained network, ready to run; any number of threads may call it at a time.

    Attributes:
        info: What there is to say of it, as plain data: kind, precision, parameters, file_bytes, name.
        image_size: Side of its images, in pixels.
        num_steps: Refinement steps unless told otherwise; None where nothing is refined.
    """

    info: dict[str, Any]
    image_size: int
    num_steps: int | None

    def encode(self, pixels: np.ndarray) -> Any:
        """Do what depends on the images alone. pixels: uint8, RGB (B, H, W, 3); what it returns is for ``decode``."""

    def decode(self, encoded: Any, num_steps: int | None, record_steps: bool) -> Decoded:
        """Write the captions. ``num_steps`` None takes the network's own."""

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""
