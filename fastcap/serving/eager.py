"""A checkpoint, run by torch as it was trained, its batch norms folded first."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fastcap.backbone.fold import prepare_for_inference
from fastcap.build import LoadedCheckpoint
from fastcap.model import FastCap
from fastcap.types import Refinement, StepTensors


class EagerNetwork:
    """The model of a checkpoint behind the ``Network`` protocol; autoregressive ones too.

    Args:
        loaded: A checkpoint read by ``load_checkpoint``; its model cannot be trained afterwards.
        length_beam: Length candidates, if not those of its configuration.
    """

    @torch.inference_mode(False)
    def __init__(self, loaded: LoadedCheckpoint, length_beam: int | None = None) -> None:
        self.model = loaded.model
        self.text = loaded.tokenizer.decode
        self.image_size = loaded.image_size
        self.length_beam = length_beam
        self.num_steps: int | None = getattr(self.model.refinement, "num_steps", None)
        self.info: dict[str, Any] = {
            "kind": "eager",
            "precision": "fp32",
            "parameters": count_parameters(self.model),
            "file_bytes": loaded.path.stat().st_size,
            "name": str(loaded.config.get("name", loaded.path.stem)),
        }
        self.model.backbone = prepare_for_inference(self.model.backbone, self.image_size)

    @torch.inference_mode()
    def run(self, pixels: np.ndarray, num_steps: int | None, record_steps: bool) -> Refinement:
        """Caption images, as ``Network.run``."""
        encoded = self.model.encode(torch.tensor(pixels).permute(0, 3, 1, 2))
        result = self.model.decode(encoded, num_steps, self.length_beam, record_steps)
        weights = result.expert_weights
        arrays: Any = {
            name: getattr(result, name).numpy() for name in ("tokens", "lengths", "scores", "drafted_lengths")
        }
        steps: Any = [StepTensors(*(value.numpy() for value in vars(step).values())) for step in result.steps]
        experts: Any = None if weights is None else weights.float().numpy()
        return Refinement(**arrays, num_passes=result.num_passes, steps=steps, expert_weights=experts)


def count_parameters(model: FastCap) -> int:
    """Count the parameters that captioning reads: what only training's losses use is left out."""
    parts: list[nn.Module] = [model.backbone, model.alignment.projection, cast(nn.Module, model.decoder), model.length]
    if any(value for name, value in vars(model.refinement.guidance_weights).items() if name != "word_penalty"):
        parts.append(model.alignment.concepts.branch or model.alignment.concepts.memory_head)
    return sum(p.numel() for part in parts for p in part.parameters())
