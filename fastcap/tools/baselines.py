"""Well-known captioners from transformers to measure beside ours: published architectures, random weights.

Their weights are not at hand offline. What a caption costs does not depend on them, once its length is fixed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from fastcap.data.pixels import decode_image
from fastcap.utils.errors import UserError

NUM_TOKENS = 12  # new ones of every caption
Settings = Mapping[str, Any]
ARCHITECTURES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def architecture(name: str) -> dict[str, Any]:
    """Look a baseline up; one that is unknown is a ``UserError``."""
    if name not in ARCHITECTURES:
        raise UserError(f"no baseline {name!r}; choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_baseline(name: str, changes: Settings | None = None) -> nn.Module:
    """Build a baseline with random weights; a ``UserError`` says that there is none of that name.

    Args:
        name: One of ``ARCHITECTURES``.
        changes: Settings beyond the published ones (for tests: shrunk).
    """
    known = architecture(name)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    settings = dict(known["settings"])
    for key, value in (changes or {}).items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    torch.manual_seed(0)
    kind = getattr(transformers, known["model"])
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
        model: The model, or None for the published architecture.
    """

    def __init__(self, name: str, size: int | None = None, num_beams: int = 1, model: Any = None) -> None:
        known = architecture(name)
        self.model: Any = build_baseline(name) if model is None else model
        self.mean, self.std = (255 * torch.tensor(values).view(3, 1, 1) for values in known["pixels"])
        self.size = size or known["size"]
        self.inputs: dict[str, Any] = {
            "num_beams": num_beams,
            "do_sample": False,
            "min_new_tokens": NUM_TOKENS,
            "max_new_tokens": NUM_TOKENS,
        }
        config: Any = self.model.config
        if name == "blip-base":
            self.inputs["interpolate_pos_encoding"] = self.size != config.vision_config.image_size
        self.tiled = name == "smolvlm-256m"
        if "prompt" in known:
            image = torch.full((self._image_tokens(),), config.image_token_id)
            self.inputs["input_ids"] = torch.cat([image, torch.arange(4, 4 + known["prompt"])]).unsqueeze(0)

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
        """Write the new tokens of a caption, (NUM_TOKENS,)."""
        pixels = torch.tensor(decode_image(file, self.size)).permute(2, 0, 1)
        values = ((pixels - self.mean) / self.std).unsqueeze(0)
        tokens = self.model.generate(pixel_values=values.unsqueeze(1) if self.tiled else values, **self.inputs)
        return tokens[0, -NUM_TOKENS:]

    @torch.inference_mode()
    def _image_tokens(self) -> int:
        """How many tokens of the prompt stand for the image."""
        if self.tiled:
            vision = self.model.config.vision_config
            return (self.size // vision.patch_size // self.model.config.scale_factor) ** 2
        return int(self.model.get_image_features(torch.zeros(1, 3, self.size, self.size)).pooler_output.shape[1])
