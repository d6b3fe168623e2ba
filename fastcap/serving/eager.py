"""A checkpoint, run by torch as it was trained: folded and laid out for this machine first."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastcap.backbone.fold import prepare_for_inference
from fastcap.build import LoadedCheckpoint, load_checkpoint
from fastcap.model import FastCap
from fastcap.types import Refinement, StepTensors
from fastcap.utils.prepacking import PACKABLE, PackedLinear, pack_layers, packs

_TOLERANCE = 1e-4  # of what is compared: packing rounds differently, no more


class EagerNetwork:
    """The model of a checkpoint behind the ``Network`` protocol; autoregressive ones too.

    Args:
        loaded: A checkpoint read by ``load_checkpoint``; its model is prepared for inference.
        pack: Kinds of layers whose weights are laid out for this machine too (``prepare_model``).
        length_beam: Length candidates, if not those of its configuration.
    """

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        pack: Collection[type[nn.Module]] = PACKABLE,
        length_beam: int | None = None,
    ) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        parameters = count_parameters(self.model)
        self.image_size = loaded.image_size
        self.length_beam = length_beam
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

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""
        return self.tokenizer.decode(tokens)


def open_eager(path: Path, num_threads: int | None = None, length_beam: int | None = None) -> EagerNetwork:
    """Load a checkpoint to run it.

    Args:
        path: The file.
        num_threads: Torch's threads, in the whole process; None leaves them as they are.
        length_beam: Length candidates, if not those of its configuration.

    Raises:
        CheckpointError: If the checkpoint is unusable.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return EagerNetwork(load_checkpoint(path), length_beam=length_beam)


def count_parameters(model: FastCap) -> int:
    """Count the parameters that captioning reads: what only training's losses use is left out."""
    parts: list[nn.Module] = [model.backbone, model.alignment.projection, cast(nn.Module, model.decoder), model.length]
    if any(value for name, value in vars(model.refinement.guidance_weights).items() if name != "word_penalty"):
        parts.append(model.alignment.concepts.branch or model.alignment.concepts.memory_head)
    return sum(p.numel() for part in parts for p in part.parameters())


@torch.inference_mode(False)
def prepare_model(model: FastCap, image_size: int, pack: Collection[type[nn.Module]] = PACKABLE) -> None:
    """Fold what can be folded and lay weights out for this CPU, in place; captions stay the same but for rounding.

    The model cannot be trained afterwards, and its state no longer fits a checkpoint.

    Args:
        model: In evaluation mode.
        image_size: Side of the images to expect, in pixels; others work too.
        pack: Kinds of layers whose weights are laid out. ``torch.compile`` takes packed convolutions but no packed
            linear layers, an export neither.
    """
    model.backbone = prepare_for_inference(model.backbone, image_size, pack)
    if nn.Linear in pack and packs(model.decoder.head_bias):
        _pack_decoding(model, image_size)


@torch.no_grad()
def _pack_decoding(model: FastCap, image_size: int) -> None:
    """Pack what comes after the backbone, where the results stay the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, 3, image_size, image_size), dtype=torch.uint8, generator=generator)
    features = model.backbone(model.normalize(images))
    before = (model.alignment, model.decoder, model.length)
    expected = _results(model, features)
    model.alignment, model.decoder, model.length = copy.deepcopy(before)
    model.decoder.join()
    pack_layers(model, lambda: model.decode(model.alignment.project(features)))
    decoder = model.decoder
    rows = 1 if decoder.causal else decoder.max_length
    decoder.head.packed = PackedLinear(decoder.word.weight, decoder.head_bias, None, rows)
    for result, like in zip(_results(model, features), expected, strict=True):
        if not bool((result - like).norm() < _TOLERANCE * like.norm()):
            model.alignment, model.decoder, model.length = before
            return


def _results(model: FastCap, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The image memory, the length logits, and the logits of a caption of masks."""
    memory, decoder = model.alignment.project(features).memory, cast(Any, model.decoder)
    tokens = torch.full((1, decoder.max_length), model.refinement.special.mask, device=memory.device)
    cache = decoder.prepare(memory)
    if decoder.causal:
        logits = decoder.predict(tokens, cache)[0]
    else:
        logits = decoder.denoise(tokens, torch.zeros_like(tokens, dtype=torch.bool), cache)
    return memory, model.length(memory), logits
