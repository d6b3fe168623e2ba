"""Well-known captioners from transformers to measure beside ours: published architectures, random weights.

Their weights are not at hand offline. What a caption costs does not depend on them, once its length is fixed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.data.pixels import decode_image
from fastcap.types import IMAGE_MEAN, IMAGE_STD
from fastcap.utils.errors import UserError

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How to build a baseline, and what is published of it.

    Attributes:
        model: Its class in transformers.
        settings: Of the published model, as its configuration takes them, where they differ from the library's
            defaults.
        size: Side of the images it was trained on, in pixels.
        parameters: Published number of parameters, tied ones counted once.
        pixels: Mean and standard deviation of its pixels (0 to 1).
        prompt: Tokens of the published prompt beside those of the image; None where there is no prompt.
    """

    model: str
    settings: Settings
    size: int
    parameters: float
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    prompt: int | None = None


# As published: Salesforce/blip-image-captioning-base, microsoft/git-base-coco, nlpconnect/vit-gpt2-image-captioning,
# microsoft/Florence-2-base, HuggingFaceTB/SmolVLM-256M-Instruct (one tile: its processor cuts large images into up to
# 17, so this is its fastest). BLIP's vision tower is drawn wider than the library's default of 1e-10: same layers, no
# vanishing numbers.
ARCHITECTURES = {
    "blip-base": Architecture(
        "BlipForConditionalGeneration",
        {"text_config": {"num_attention_heads": 12}, "vision_config": {"initializer_range": 0.02}},
        size=384,
        parameters=224.0e6,
        pixels=_CLIP,
    ),
    "git-base": Architecture("GitForCausalLM", {"vision_config": {}}, size=224, parameters=176.6e6, pixels=_CLIP),
    "vit-gpt2": Architecture(
        "VisionEncoderDecoderModel",
        {
            "encoder": {"model_type": "vit"},
            "decoder": {"model_type": "gpt2", "is_decoder": True, "add_cross_attention": True},
        },
        size=224,
        parameters=239.2e6,
        pixels=_HALF,
    ),
    "florence-2-base": Architecture(
        "Florence2ForConditionalGeneration",
        {
            "text_config": {
                "d_model": 768,
                **{f"{part}_layers": 6 for part in ("encoder", "decoder")},
                **{f"{part}_attention_heads": 12 for part in ("encoder", "decoder")},
                **{f"{part}_ffn_dim": 3072 for part in ("encoder", "decoder")},
                "vocab_size": 51290,
            },
            "vision_config": {"projection_dim": 768},
            "image_token_id": 51289,
        },
        size=768,
        parameters=231.4e6,
        pixels=(IMAGE_MEAN, IMAGE_STD),
        prompt=9,
    ),
    "smolvlm-256m": Architecture(
        "SmolVLMForConditionalGeneration",
        {
            "text_config": {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "vocab_size": 49280,
                "max_position_embeddings": 8192,
                "pad_token_id": 2,
                "eos_token_id": 49279,
            },
            "vision_config": {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
            "scale_factor": 4,
            "image_token_id": 49278,
        },
        size=512,
        parameters=256.5e6,
        pixels=_HALF,
        prompt=20,
    ),
}


def architecture(name: str) -> Architecture:
    """Look a baseline up.

    Raises:
        UserError: If there is no such baseline.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"no baseline {name!r}; choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_baseline(name: str, changes: Settings | None = None) -> nn.Module:
    """Build a baseline with random weights.

    Args:
        name: One of ``ARCHITECTURES``.
        changes: Settings beyond the published ones (for tests: shrunk).

    Raises:
        UserError: If there is no such baseline, or transformers is missing.
    """
    known = architecture(name)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise UserError("baselines need transformers: pip install 'fastcap[baselines]'") from error
    logging.set_verbosity_error()
    settings = dict(known.settings)
    for key, value in (changes or {}).items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    torch.manual_seed(0)
    kind = getattr(transformers, known.model)
    model: Any = kind(kind.config_class(**copy.deepcopy(settings))).eval()
    if name == "vit-gpt2":
        decoder, generation = model.config.decoder, model.generation_config
        generation.decoder_start_token_id = generation.bos_token_id = decoder.bos_token_id
        generation.eos_token_id = generation.pad_token_id = decoder.eos_token_id
    return model


class Baseline:
    """An image file in, token ids out, by one of transformers' captioners.

    The file is decoded as ours are: a little quicker than transformers' own image processors.

    Args:
        name: One of ``ARCHITECTURES``.
        size: Side of its images, in pixels; None for that of the published model.
        num_beams: 1 for greedy decoding.
        num_tokens: Every caption has exactly so many new tokens.
        model: The model, or None for the published architecture.
    """

    def __init__(
        self, name: str, size: int | None = None, num_beams: int = 1, num_tokens: int = 12, model: Any = None
    ) -> None:
        known = architecture(name)
        self.model: Any = build_baseline(name) if model is None else model
        self.mean, self.std = (255 * torch.tensor(values).view(3, 1, 1) for values in known.pixels)
        self.size, self.num_tokens = size or known.size, num_tokens
        self.inputs: dict[str, Any] = {
            "num_beams": num_beams,
            "do_sample": False,
            "min_new_tokens": num_tokens,
            "max_new_tokens": num_tokens,
        }
        config: Any = self.model.config
        if name == "blip-base":
            self.inputs["interpolate_pos_encoding"] = self.size != config.vision_config.image_size
        self.tiled = name == "smolvlm-256m"
        if known.prompt is not None:
            image = torch.full((self._image_tokens(),), config.image_token_id)
            self.inputs["input_ids"] = torch.cat([image, torch.arange(4, 4 + known.prompt)]).unsqueeze(0)

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def file_bytes(self) -> int:
        """Bytes of its tensors in a safetensors file, shared ones stored once."""
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in self.model.state_dict().values()}
        return sum(tensors.values())

    @torch.inference_mode()
    def generate(self, file: str | Path) -> Tensor:
        """Write the new tokens of a caption, (num_tokens,)."""
        pixels = torch.tensor(decode_image(file, self.size)).permute(2, 0, 1)
        values = ((pixels - self.mean) / self.std).unsqueeze(0)
        tokens = self.model.generate(pixel_values=values.unsqueeze(1) if self.tiled else values, **self.inputs)
        return tokens[0, -self.num_tokens :]

    @torch.inference_mode()
    def _image_tokens(self) -> int:
        """How many tokens of the prompt stand for the image."""
        if self.tiled:
            vision = self.model.config.vision_config
            return (self.size // vision.patch_size // self.model.config.scale_factor) ** 2
        return int(self.model.get_image_features(torch.zeros(1, 3, self.size, self.size)).pooler_output.shape[1])
