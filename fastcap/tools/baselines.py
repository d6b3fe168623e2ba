"""Well-known captioners from transformers to measure beside ours: published architectures, random weights.

Their weights are not at hand offline. What a caption costs does not depend on them, once its length is fixed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """How to build a baseline, and what is published of it.

    Attributes:
        make: From the settings of its parts ``text`` and ``vision`` to the model.
        parts: Settings of the published model where they differ from the library's defaults.
        size: Side of the images it was trained on, in pixels.
        parameters: Published number of parameters, tied ones counted once.
        pixels: Mean and standard deviation of its pixels (0 to 1).
        prompt: Tokens of the published prompt beside those of the image; None where there is no prompt.
    """

    make: Callable[[Options], nn.Module]
    parts: Options
    size: int
    parameters: float
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    prompt: int | None = None


def _blip(parts: Options) -> nn.Module:
    from transformers import BlipConfig, BlipForConditionalGeneration

    config = BlipConfig(text_config=dict(parts["text"]), vision_config=dict(parts["vision"]))
    return BlipForConditionalGeneration(config)


def _git(parts: Options) -> nn.Module:
    from transformers import GitConfig, GitForCausalLM

    return GitForCausalLM(GitConfig(vision_config=dict(parts["vision"]), **parts["text"]))


def _vit_gpt2(parts: Options) -> nn.Module:
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    decoder = GPT2Config(**parts["text"], is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**parts["vision"]), decoder)
    model: nn.Module = VisionEncoderDecoderModel(config)
    settings: Any = model.generation_config
    settings.decoder_start_token_id = settings.bos_token_id = decoder.bos_token_id
    settings.eos_token_id = settings.pad_token_id = decoder.eos_token_id
    return model


def _florence(parts: Options) -> nn.Module:
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    image = parts["text"]["vocab_size"] - 1
    config = Florence2Config(text_config=dict(parts["text"]), vision_config=dict(parts["vision"]), image_token_id=image)
    return Florence2ForConditionalGeneration(config)


def _smolvlm(parts: Options) -> nn.Module:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        text_config={"model_type": "llama", **parts["text"]},
        vision_config=dict(parts["vision"]),
        scale_factor=4,
        image_token_id=parts["text"]["vocab_size"] - 2,
    )
    return SmolVLMForConditionalGeneration(config)


# As published: Salesforce/blip-image-captioning-base, microsoft/git-base-coco, nlpconnect/vit-gpt2-image-captioning,
# microsoft/Florence-2-base, HuggingFaceTB/SmolVLM-256M-Instruct (one tile: its processor cuts large images into up to
# 17, so this is its fastest). BLIP's vision tower is drawn wider than the library's default of 1e-10: same layers, no
# vanishing numbers.
ARCHITECTURES = {
    "blip-base": Architecture(
        _blip,
        {"text": {"num_attention_heads": 12}, "vision": {"initializer_range": 0.02}},
        size=384,
        parameters=224.0e6,
        pixels=_CLIP,
    ),
    "git-base": Architecture(_git, {"text": {}, "vision": {}}, size=224, parameters=176.6e6, pixels=_CLIP),
    "vit-gpt2": Architecture(_vit_gpt2, {"text": {}, "vision": {}}, size=224, parameters=239.2e6, pixels=_HALF),
    "florence-2-base": Architecture(
        _florence,
        {
            "text": {
                "d_model": 768,
                **{f"{part}_layers": 6 for part in ("encoder", "decoder")},
                **{f"{part}_attention_heads": 12 for part in ("encoder", "decoder")},
                **{f"{part}_ffn_dim": 3072 for part in ("encoder", "decoder")},
                "vocab_size": 51290,
            },
            "vision": {"projection_dim": 768},
        },
        size=768,
        parameters=231.4e6,
        pixels=(IMAGE_MEAN, IMAGE_STD),
        prompt=9,
    ),
    "smolvlm-256m": Architecture(
        _smolvlm,
        {
            "text": {
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
            "vision": {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
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


def build_baseline(name: str, parts: Options | None = None) -> nn.Module:
    """Build a baseline with random weights.

    Args:
        name: One of ``ARCHITECTURES``.
        parts: Settings of its parts beyond the published ones (for tests: shrunk).

    Raises:
        UserError: If there is no such baseline, or transformers is missing.
    """
    known = architecture(name)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise UserError("baselines need transformers: pip install 'fastcap[baselines]'") from error
    logging.set_verbosity_error()
    settings = {part: {**given, **(parts or {}).get(part, {})} for part, given in known.parts.items()}
    torch.manual_seed(0)
    return known.make(settings).eval()


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
