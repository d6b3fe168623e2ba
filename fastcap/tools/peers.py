"""Well-known captioners from transformers to measure beside ours: true architectures, random weights, fixed length."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from fastcap.build import ConfigError
from fastcap.data.pixels import decode_image

INSTALL = "pip install -c constraints.txt -e '.[baselines]'"
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """How to build a peer, and what is published of it.

    Attributes:
        make: From its parts' settings, each a dictionary, to the model.
        parts: Settings of the published model where they differ from the library's defaults.
        size: Side of the images it was trained on, in pixels.
        parameters: Published number of parameters, tied ones counted once.
        pixels: Mean and standard deviation of its pixels (0 to 1).
        any_size: Whether it takes images of other sizes, resizing its table of positions.
    """

    make: Callable[[Options], nn.Module]
    parts: Options
    size: int
    parameters: float
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    any_size: bool = False


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


# As published: Salesforce/blip-image-captioning-base, microsoft/git-base-coco, nlpconnect/vit-gpt2-image-captioning.
# BLIP's vision tower is drawn wider than the library's default of 1e-10: same layers, no vanishing numbers.
ARCHITECTURES = {
    "blip-base": Architecture(
        _blip,
        {"text": {"num_attention_heads": 12}, "vision": {"initializer_range": 0.02}},
        size=384,
        parameters=224.0e6,
        pixels=_CLIP,
        any_size=True,
    ),
    "git-base": Architecture(_git, {"text": {}, "vision": {}}, size=224, parameters=176.6e6, pixels=_CLIP),
    "vit-gpt2": Architecture(_vit_gpt2, {"text": {}, "vision": {}}, size=224, parameters=239.2e6, pixels=_HALF),
}


def architecture(name: str) -> Architecture:
    """Look a peer up.

    Raises:
        ConfigError: If there is no such peer.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"no peer {name!r}; choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_peer(name: str, parts: Options | None = None) -> nn.Module:
    """Build a peer with random weights.

    Args:
        name: One of ``ARCHITECTURES``.
        parts: Settings of its parts ``text`` and ``vision`` beyond the published ones (for tests: shrunk).

    Raises:
        ConfigError: If there is no such peer, or transformers is missing.
    """
    known = architecture(name)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(f"peers need transformers: {INSTALL}") from error
    logging.set_verbosity_error()
    settings = {part: {**given, **(parts or {}).get(part, {})} for part, given in known.parts.items()}
    torch.manual_seed(0)
    return known.make(settings).eval()


@functools.cache
def _published(name: str) -> Any:
    return build_peer(name)


class Peer:
    """An image file in, text out, by one of transformers' captioners.

    The file is decoded as ours are: a little quicker than transformers' own image processors. Words are made up, one
    for each id of the vocabulary.

    Args:
        name: One of ``ARCHITECTURES``.
        size: Side of its images, in pixels.
        num_beams: 1 for greedy decoding.
        num_tokens: Every caption has exactly so many new tokens.
        model: The model, or None for the published one, which is built once a process.
    """

    def __init__(self, name: str, size: int, num_beams: int = 1, num_tokens: int = 12, model: Any = None) -> None:
        known = architecture(name)
        self.model: Any = _published(name) if model is None else model
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in known.pixels)
        self.mean, self.std = mean, std
        self.size, self.num_tokens = size, num_tokens
        self.options: dict[str, Any] = {
            "num_beams": num_beams,
            "do_sample": False,
            "min_new_tokens": num_tokens,
            "max_new_tokens": num_tokens,
        }
        if known.any_size:
            self.options["interpolate_pos_encoding"] = size != self.model.config.vision_config.image_size
        text = getattr(self.model.config, "text_config", None) or getattr(self.model.config, "decoder", None)
        words = {f"w{index}": index for index in range(int((text or self.model.config).vocab_size))}
        self._words = Tokenizer(models.WordLevel(words, unk_token="w0"))

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def file_bytes(self) -> int:
        """Bytes of its tensors in a safetensors file, shared ones stored once."""
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in self.model.state_dict().values()}
        return sum(tensors.values())

    def generate(self, file: str | Path) -> Tensor:
        """Write the new tokens of a caption, (num_tokens,)."""
        pixels = torch.tensor(decode_image(file, self.size)).permute(2, 0, 1)
        with torch.inference_mode():
            tokens = self.model.generate(pixel_values=((pixels - self.mean) / self.std).unsqueeze(0), **self.options)
        return tokens[0, -self.num_tokens :]

    def caption(self, file: str | Path) -> str:
        """Caption an image file."""
        return self._words.decode(self.generate(file).tolist())
