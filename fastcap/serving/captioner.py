"""One way to captions, for a checkpoint and for its exports: ``Captioner.load(path).caption(image)``."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastcap.data.pixels import decode_image
from fastcap.pretrained import SHIPPED, find_model, verified
from fastcap.serving.onnx_model import ModelFileError, OnnxNetwork
from fastcap.types import Refinement, RefinementStep

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastcap.build import LoadedCheckpoint

    Picture = str | os.PathLike[str] | bytes | Image | np.ndarray


@dataclass
class Caption:
    """A caption and how it came about.

    Attributes:
        text: The caption.
        confidence: Geometric mean of its words' probabilities, 0 to 1.
        steps: Every refinement step, where asked for.
        expert_weights: Weight of each expert, summing to one; None where the decoder has no experts.
        milliseconds: Time taken by ``decode_image`` and ``caption``; in a batch, an image's share.
    """

    text: str
    confidence: float
    steps: list[RefinementStep] = field(default_factory=list)
    expert_weights: list[float] | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)


class Network(Protocol):
    """A trained network, ready to run; any number of threads may call it at a time.

    Attributes:
        info: Plain facts: kind, precision, parameters, file_bytes, name.
        image_size: Side of its images, in pixels.
        num_steps: Refinement steps unless told otherwise; None where nothing is refined.
    """

    info: dict[str, Any]
    image_size: int
    num_steps: int | None

    def run(self, pixels: np.ndarray, num_steps: int | None, record_steps: bool) -> Refinement:
        """Caption images; returns tensors or numpy arrays.

        Args:
            pixels: uint8, RGB. (B, S, S, 3)
            num_steps: Refinement steps, if not the network's own.
            record_steps: Keep every step.

        Raises:
            ValueError: If this number of steps is refused.
        """

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""


class EagerNetwork:
    """The model of a checkpoint, run by torch, its batch norms folded first; autoregressive ones too.

    Args:
        loaded: A checkpoint read by ``load_checkpoint``; its model cannot be trained afterwards.
        length_beam: Length candidates, if not those of its configuration.
    """

    def __init__(self, loaded: LoadedCheckpoint, length_beam: int | None = None) -> None:
        import torch  # and what stands on it: an exported model is captioned without

        from fastcap.backbone.timm_encoder import prepare_for_inference

        self.model, self.text, self.image_size = loaded.model, loaded.tokenizer.decode, loaded.image_size
        self.length_beam = length_beam
        self.num_steps: int | None = getattr(self.model.refinement, "num_steps", None)
        self.info: dict[str, Any] = {
            "kind": "eager",
            "precision": "fp32",
            "parameters": self.model.num_parameters(),
            "file_bytes": loaded.path.stat().st_size,
            "name": str(loaded.config.get("name", loaded.path.stem)),
        }
        with torch.inference_mode(False):
            self.model.backbone = prepare_for_inference(self.model.backbone, self.image_size)

    def run(self, pixels: np.ndarray, num_steps: int | None, record_steps: bool) -> Refinement:
        """Caption images, as ``Network.run``."""
        import torch

        with torch.inference_mode():
            memory = self.model.encode(torch.tensor(pixels).permute(0, 3, 1, 2))
            return self.model.decode(memory, num_steps, self.length_beam, record_steps)


class Captioner:
    """Captions for images, whatever runs the network. Any number of threads may share one.

    Args:
        network: What runs; ``Captioner.load`` makes it.
        num_steps: Refinement steps, if not the network's own.
    """

    def __init__(self, network: Network, num_steps: int | None = None) -> None:
        self._network = network
        self._num_steps = self._checked(num_steps)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        num_threads: int | None = None,
        num_steps: int | None = None,
        length_beam: int | None = None,
    ) -> Captioner:
        """Open a model. No model file may hold code.

        Args:
            path: An ``.onnx`` file or a checkpoint (``.ckpt``), an export's folder or a run's; None or ``pretrained``
                for the model that FastCap brings along.
            num_threads: Threads that the network may use; None leaves the choice to what runs it.
            num_steps: Refinement steps, if not the model's own.
            length_beam: Length candidates, if not the model's own. An exported model has both fixed.

        Raises:
            ModelFileError: If the file is no usable model, or what runs it is not installed.
            PretrainedError: If the model that FastCap brings along is not the one of its card.
            CheckpointError: If a checkpoint is unusable.
            ValueError: If a number is refused.
        """
        for name, value in (("num_threads", num_threads), ("length_beam", length_beam)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        num_threads = num_threads and min(num_threads, os.cpu_count() or num_threads)  # more would only wait
        file = find_model(path)
        if file.parent == SHIPPED:
            verified(file.name)
        elif not file.is_file():
            raise ModelFileError(f"{file}: no such model file; leave it out for the model that FastCap brings along")
        network: Network
        if file.suffix == ".onnx":
            network = OnnxNetwork(file, num_threads, length_beam)
        else:
            import torch  # Hydra and Lightning too: an export does without

            from fastcap.build import load_checkpoint

            if num_threads is not None:
                torch.set_num_threads(num_threads)
            network = EagerNetwork(load_checkpoint(file), length_beam)
        return cls(network, num_steps)

    @property
    def num_steps(self) -> int | None:
        """Refinement steps of each caption unless told otherwise; None for a model that writes word after word."""
        return self._num_steps or self._network.num_steps

    @property
    def info(self) -> dict[str, Any]:
        """Plain facts: kind, precision, image_size, parameters, file_bytes, num_steps, name."""
        return {**self._network.info, "image_size": self._network.image_size, "num_steps": self.num_steps}

    def read(self, image: Picture) -> np.ndarray:
        """Decode an image to the pixels that the network sees, uint8 RGB (S, S, 3); arrays of that size pass through.

        Raises:
            DataError: If the image cannot be read, naming its file.
        """
        return decode_image(image, self._network.image_size)

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
        steps = self._checked(num_steps) or self._num_steps
        if not images:
            return []
        start = time.perf_counter()
        pixels = np.stack([self.read(image) for image in images])
        read = time.perf_counter()
        refinement = self._network.run(pixels, steps, record_steps)
        done = time.perf_counter()
        times = {"decode_image": read - start, "caption": done - read}
        share = {name: 1000.0 * seconds / len(images) for name, seconds in times.items()}
        return [self._caption(refinement, row, dict(share)) for row in range(len(images))]

    def _caption(self, refinement: Refinement, row: int, milliseconds: dict[str, float]) -> Caption:
        weights = refinement.expert_weights
        steps = refinement.steps_of(row, self._network.text)
        # Others in the batch may have taken more steps: this caption was done with the first that masked nothing.
        last = next((number for number, step in enumerate(steps) if not any(step.remasked)), len(steps))
        return Caption(
            text=self._network.text(refinement.tokens[row, : int(refinement.lengths[row])].tolist()),
            confidence=math.exp(refinement.scores[row]),
            steps=steps[: last + 1],
            expert_weights=None if weights is None else weights[row].tolist(),
            milliseconds=milliseconds,
        )

    def _checked(self, value: int | None) -> int | None:
        if value is None:
            return None
        if self._network.num_steps is None:
            raise ValueError("num_steps: this model writes word after word and refines nothing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"num_steps = {value!r} must be a whole number, at least 1")
        return value
