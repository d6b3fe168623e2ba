"""A checkpoint, run by torch as it was trained."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcap.build import LoadedCheckpoint, load_checkpoint
from fastcap.model import FastCap
from fastcap.serving.network import Decoded, Draft
from fastcap.serving.prepare import prepare_model
from fastcap.types import Encoded
from fastcap.utils.prepacking import PACKABLE


class EagerNetwork:
    """The model of a checkpoint behind the ``Network`` protocol; autoregressive ones too.

    Args:
        loaded: A checkpoint read by ``load_checkpoint``; its model is prepared for inference.
        pack: Kinds of layers whose weights are laid out for this machine too (``prepare_model``).
    """

    def __init__(self, loaded: LoadedCheckpoint, pack: Collection[type[nn.Module]] = PACKABLE) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        parameters = count_parameters(self.model)
        self.image_size = loaded.image_size
        prepare_model(self.model, self.image_size, pack)
        self.num_steps: int | None = getattr(self.model.refinement, "num_steps", None)
        self.info: dict[str, Any] = {
            "kind": "eager",
            "precision": "fp32",
            "parameters": parameters,
            "file_bytes": loaded.path.stat().st_size,
            "name": str(loaded.config.get("name", loaded.path.stem)),
        }

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> tuple[Encoded, Tensor]:
        """Encode images, and score their lengths. pixels: uint8, RGB (B, H, W, 3)."""
        encoded = self.model.encode(torch.tensor(pixels).permute(0, 3, 1, 2))
        return encoded, self.model.length(encoded.memory)

    @torch.inference_mode()
    def decode(self, encoded: tuple[Encoded, Tensor], num_steps: int | None, record_steps: bool) -> Decoded:
        """Write the captions."""
        generator: Any = self.model.refinement
        if num_steps is not None:
            generator = copy.copy(generator)  # another thread may want another number of steps
            generator.num_steps = num_steps
        images, lengths = encoded
        judges = self.model.alignment.judges(images)
        result = generator.generate(self.model.decoder, images.memory, lengths, record_steps, judges)
        weights = result.expert_weights
        return Decoded(
            tokens=result.tokens.numpy(),
            lengths=result.lengths.numpy(),
            scores=result.scores.numpy(),
            drafted_lengths=result.drafted_lengths.numpy(),
            drafts=[Draft(s.tokens.numpy(), s.confidence.numpy(), s.remasked.numpy()) for s in result.steps],
            expert_weights=None if weights is None else weights.float().numpy(),
        )

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""
        return self.tokenizer.decode(tokens)


def open_eager(
    path: Path,
    refinement: dict[str, Any],
    num_threads: int | None,
    pack: Collection[type[nn.Module]] = PACKABLE,
) -> EagerNetwork:
    """Load a checkpoint to run it.

    Args:
        path: The file.
        refinement: Values for keys of its ``refinement`` group.
        num_threads: Torch's threads, in the whole process; None leaves them as they are.
        pack: As in ``EagerNetwork``.

    Raises:
        CheckpointError: If the checkpoint is unusable.
        ConfigError: If a refinement key is unknown or its value refused.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return EagerNetwork(load_checkpoint(path, {f"refinement.{key}": value for key, value in refinement.items()}), pack)


def count_parameters(model: FastCap) -> int:
    """Count the parameters that captioning reads: what only training's losses use is left out."""
    parts: list[nn.Module] = [model.backbone, model.alignment.projection, model.decoder, model.length]
    weights = (getattr(model.refinement, name, 0) for name in ("concept_weight", "phrase_weight"))
    if max(model.refinement.rank_weights.naming, *weights) > 0:
        parts.append(model.alignment.judge_head or model.alignment.concept_head)
    return sum(p.numel() for part in parts for p in part.parameters())
