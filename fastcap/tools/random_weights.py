"""Checkpoints that nobody trained, for timing alone: our architectures, random weights, captions of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

import fastcap
from fastcap.build import CONFIG_DIR, build_model
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.tools.systems import RANDOM_NAME
from fastcap.training.checkpoints import FORMAT_VERSION
from fastcap.utils.files import atomic_write

DEFAULTS = ("backbone=spatial_mamba_small", "decoder=moe", "data.image_size=224")
AUTOREGRESSIVE_DEFAULTS = (
    *("backbone=spatial_mamba_small", "decoder=autoregressive", "refinement=greedy", "data.image_size=224"),
)


def write_random(path: Path, overrides: Sequence[str] = DEFAULTS, num_tokens: int = 12, num_words: int = 4000) -> Path:
    """Write a checkpoint with random weights. It captions with made-up words.

    The likeliest lengths are ``num_tokens`` and those beside it. An autoregressive decoder writes ``num_tokens``
    tokens, the last of them [EOS]: so many passes, as the baselines make.

    Args:
        path: The file.
        overrides: Of ``conf/train.yaml``.
        num_tokens: Length of the captions.
        num_words: Size of the vocabulary, special tokens left aside.
    """
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("train", overrides=[f"name={RANDOM_NAME}", *overrides])
    tokenizer = train_word_tokenizer([" ".join(f"w{index}" for index in range(num_words))], min_frequency=1)
    first, size = len(tokenizer.special.ids), tokenizer.vocab_size
    causal = "num_beams" in config.refinement
    if causal:
        config.data.max_length = num_tokens - 1
    torch.manual_seed(0)
    model = build_model(config, tokenizer, fresh=False).eval()
    with torch.no_grad():
        if causal:
            model.decoder.head_bias[tokenizer.special.eos] = -1e4  # never before the longest caption is full
        else:
            last = [layer for layer in model.length.modules() if isinstance(layer, nn.Linear)][-1]
            last.weight.zero_()
            last.bias.copy_(-(torch.arange(1, len(last.bias) + 1) - num_tokens - 0.1).abs())
            model.ngrams.count(torch.randint(first, size, (num_words, num_tokens)).tolist())
    artifacts = {
        "format_version": FORMAT_VERSION,
        "fastcap_version": fastcap.__version__,
        "config": OmegaConf.to_container(config, resolve=True),
        "tokenizer": tokenizer.to_json(),
    }
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    with atomic_write(path) as part:
        torch.save({"state_dict": state, "fastcap": artifacts, "global_step": 0}, part)
    return path
