"""A trained model made ready to caption on this machine."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn

from fastcap.backbone.fold import prepare_for_inference
from fastcap.model import FastCap
from fastcap.utils.prepacking import PACKABLE, PackedLinear, pack_layers, packs

_TOLERANCE = 1e-4  # of what is compared: packing rounds differently, no more


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
    features = model.backbone(model.standardise(images))
    before = (model.alignment, model.decoder, model.length)
    expected = _results(model, features)
    model.alignment, model.decoder, model.length = copy.deepcopy(before)
    model.decoder.join()
    pack_layers(model, lambda: model.describe(model.alignment.project(features)))
    decoder = model.decoder
    rows = 1 if decoder.causal else decoder.max_length
    decoder.head.packed = PackedLinear(decoder.word.weight, decoder.head_bias, None, rows)
    for result, like in zip(_results(model, features), expected, strict=True):
        if not bool((result - like).norm() < _TOLERANCE * like.norm()):
            model.alignment, model.decoder, model.length = before
            return


def _results(model: FastCap, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The image memory, the length logits, and the logits of a caption of masks."""
    memory, decoder = model.alignment.project(features).memory, model.decoder
    tokens = torch.full((1, decoder.max_length), model.refinement.special.mask, device=memory.device)
    cache = decoder.prepare(memory)
    if decoder.causal:
        logits = decoder.predict(tokens, cache)[0]
    else:
        logits = decoder.denoise(tokens, torch.zeros_like(tokens, dtype=torch.bool), cache)
    return memory, model.length(memory), logits
