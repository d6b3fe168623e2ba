"""One door to captions, for a checkpoint and for its exports: ``Captioner.load(path).caption(image)``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcap.data.pixels import decode_image, square_pixels
from fastcap.serving.network import Decoded, Network
from fastcap.types import RefinementStep

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image | np.ndarray


@dataclass
class Caption:
    """A caption and how it came about.

    Attributes:
        text: The caption.
        confidence: Geometric mean of its words' probabilities, 0 to 1.
        steps: Every refinement step, where asked for.
        expert_weights: Weight of each expert, summing to one; None where the decoder has no experts.
        milliseconds: Time taken by ``decode_image``, ``encode`` and ``decode_caption``; in a batch, an image's share.
    """

    text: str
    confidence: float
    steps: list[RefinementStep] = field(default_factory=list)
    expert_weights: list[float] | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean log-probability of the caption's tokens."""
        return math.log(self.confidence) if self.confidence > 0 else -math.inf


class Captioner:
    """Captions for images, whatever runs the network. Any number of threads may share one.

    Args:
        network: What runs; ``Captioner.load`` makes it.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._num_steps = network.num_steps

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, num_threads: int | None = None, **refinement: Any) -> Captioner:
        """Open a checkpoint (a ``.ckpt`` file) or an export (a folder). Neither may hold code.

        Args:
            path: A checkpoint, an export folder (its preferred variant is taken) or one variant's folder inside it.
            num_threads: Threads that the network may use; None leaves the choice to what runs it.
            **refinement: Values for keys of the ``refinement`` group, such as ``num_steps`` or ``num_lengths``.

        Raises:
            CheckpointError: If a file is no usable checkpoint.
            ExportError: If a folder is no usable export, or what runs it is not installed.
            ConfigError, ValueError: If a refinement key is unknown or its value refused.
        """
        path = Path(path)
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads = {num_threads} must be at least 1")
        if "num_steps" in refinement:
            _check_steps(refinement["num_steps"])
        if path.is_dir():
            from fastcap.serving.exported import open_exported

            return cls(open_exported(path, refinement, num_threads))
        from fastcap.serving.eager import open_eager  # torch, Hydra and Lightning: an export does without

        return cls(open_eager(path, refinement, num_threads))

    @property
    def num_steps(self) -> int | None:
        """Refinement steps of each caption unless told otherwise; None for a model that writes word after word."""
        return self._num_steps

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._num_steps = self._steps(value)

    @property
    def info(self) -> dict[str, Any]:
        """Plain facts: kind, precision, image_size, parameters, file_bytes, num_steps, name."""
        return {**self._network.info, "image_size": self._network.image_size, "num_steps": self._num_steps}

    def read(self, image: Picture) -> np.ndarray:
        """Decode an image to the pixels that the network sees, uint8 RGB (S, S, 3); arrays of that size pass through.

        Raises:
            DataError: If the image cannot be read, naming its file.
        """
        if isinstance(image, str | os.PathLike | bytes):
            return decode_image(image, self._network.image_size)
        return square_pixels(image, self._network.image_size)

    def caption(self, image: Picture, *, num_steps: int | None = None, record_steps: bool = False) -> Caption:
        """Caption one image: a path, a file's bytes, a Pillow image or uint8 pixels (H, W, 3).

        Args:
            image: The image.
            num_steps: Refinement steps of this caption alone.
            record_steps: Keep every step.

        Raises:
            DataError: If the image cannot be read, naming its file.
            ValueError: If num_steps is refused.
        """
        return self.caption_batch([image], num_steps=num_steps, record_steps=record_steps)[0]

    def caption_batch(
        self, images: Sequence[Picture], *, num_steps: int | None = None, record_steps: bool = False
    ) -> list[Caption]:
        """Caption images in one batch; a caption does not depend on what shares its batch. As ``caption``."""
        steps = self._num_steps if num_steps is None else self._steps(num_steps)
        if not images:
            return []
        start = time.perf_counter()
        pixels = np.stack([self.read(image) for image in images])
        read = time.perf_counter()
        encoded = self._network.encode(pixels)
        seen = time.perf_counter()
        decoded = self._network.decode(encoded, steps, record_steps)
        done = time.perf_counter()
        times = {"decode_image": read - start, "encode": seen - read, "decode_caption": done - seen}
        share = {name: 1000.0 * seconds / len(images) for name, seconds in times.items()}
        return [self._caption(decoded, row, dict(share)) for row in range(len(images))]

    def _caption(self, decoded: Decoded, row: int, milliseconds: dict[str, float]) -> Caption:
        drafted = int(decoded.drafted_lengths[row])
        weights = decoded.expert_weights
        return Caption(
            text=self._network.text(decoded.tokens[row, : int(decoded.lengths[row])].tolist()),
            confidence=float(np.exp(decoded.scores[row])),
            steps=[
                RefinementStep(
                    [self._network.text([token]) for token in draft.tokens[row, :drafted].tolist()],
                    draft.confidence[row, :drafted].tolist(),
                    draft.remasked[row, :drafted].tolist(),
                )
                for draft in decoded.drafts
            ],
            expert_weights=None if weights is None else weights[row].tolist(),
            milliseconds=milliseconds,
        )

    def _steps(self, value: int) -> int:
        if self._network.num_steps is None:
            raise ValueError("num_steps: this model writes word after word and refines nothing")
        return _check_steps(value)


def _check_steps(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"num_steps = {value!r} must be a whole number, at least 1")
    return value
