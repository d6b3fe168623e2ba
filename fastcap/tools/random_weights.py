"""Checkpoints that nobody trained, for timing alone: our architectures, random weights, captions of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn

import fastcap
from fastcap.alignment.concepts import ConceptTable
from fastcap.build import CONFIG_DIR, build_model
from fastcap.data.tokenizer import CaptionTokenizer, train_word_tokenizer
from fastcap.model import FastCap
from fastcap.tools.systems import RANDOM_NAME
from fastcap.training.checkpoints import FORMAT_VERSION, CheckpointError, read_checkpoint

DEFAULTS = ("backbone=spatial_mamba_small", "decoder=moe", "data.image_size=224")
TWIN_DEFAULTS = ("backbone=spatial_mamba_small", "decoder=autoregressive", "refinement=greedy", "data.image_size=224")
NUM_WORDS = 4000


def write_random(
    path: Path, overrides: Sequence[str] = DEFAULTS, num_tokens: int = 12, num_words: int = NUM_WORDS
) -> Path:
    """Write a checkpoint with random weights. It captions with made-up words.

    The likeliest lengths are ``num_tokens`` and those beside it. An autoregressive decoder writes ``num_tokens``
    tokens, the last of them [EOS]: so many passes, as the peers make.

    Args:
        path: The file.
        overrides: Of ``conf/train.yaml``.
        num_tokens: Length of the captions.
        num_words: Size of the vocabulary, special tokens left aside.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("train", overrides=list(overrides))
    tokenizer = train_word_tokenizer([" ".join(f"w{index}" for index in range(num_words))], min_frequency=1)
    return _write(path, config, tokenizer, num_tokens)


def write_twin(path: Path, checkpoint: Path, num_tokens: int = 12) -> Path:
    """Write the autoregressive twin of a checkpoint, with random weights: same backbone, width, vocabulary.

    Args:
        path: The file.
        checkpoint: A checkpoint whose decoder writes in parallel.
        num_tokens: As in ``write_random``.

    Raises:
        CheckpointError: If the checkpoint is unusable, or the file cannot be written.
    """
    artifacts = read_checkpoint(checkpoint)["fastcap"]
    config = OmegaConf.create(artifacts["config"])
    assert isinstance(config, DictConfig)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        twin = compose("train", overrides=["decoder=autoregressive", "refinement=greedy"])
    attention: Any = {"_target_": twin.decoder.self_attention._target_}
    config.decoder = OmegaConf.merge(config.decoder, {"_target_": twin.decoder._target_, "self_attention": attention})
    config.refinement = twin.refinement
    return _write(path, config, CaptionTokenizer.from_json(artifacts["tokenizer"]), num_tokens)


def _write(path: Path, config: DictConfig, tokenizer: CaptionTokenizer, num_tokens: int) -> Path:
    config.name = RANDOM_NAME
    causal = "num_beams" in config.refinement
    if causal:
        config.data.max_length = num_tokens - 1
    torch.manual_seed(0)
    concepts = any_phrases(tokenizer) if config.refinement.guidance.get("bigram_bias") else None
    model = build_model(config, tokenizer, concepts, fresh=False).eval()
    _fix_length(model, tokenizer.special.eos, num_tokens)
    if not causal:
        words = torch.randint(len(tokenizer.special.ids), tokenizer.vocab_size, (4000, num_tokens))
        model.ngrams.count(words.tolist())
    artifacts = {
        "format_version": FORMAT_VERSION,
        "fastcap_version": fastcap.__version__,
        "config": OmegaConf.to_container(config, resolve=True),
        "tokenizer": tokenizer.to_json(),
    }
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": state, "fastcap": artifacts, "global_step": 0}, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
    return path


def any_phrases(tokenizer: CaptionTokenizer, number: int | None = None) -> ConceptTable:
    """Make phrases of words with neighbouring ids: as many as asked for, or as there are."""
    first = len(tokenizer.special.ids)
    pairs = [(word, word + 1) for word in range(first, tokenizer.vocab_size - 1)][:number]
    return ConceptTable(tokenizer.concepts(), None, pairs, [1.0] * len(pairs))


@torch.no_grad()
def _fix_length(model: FastCap, eos: int, num_tokens: int) -> None:
    if model.decoder.causal:
        model.decoder.head_bias[eos] = -1e4  # never before the longest caption is full
        return
    last = [layer for layer in model.length.modules() if isinstance(layer, nn.Linear)][-1]
    last.weight.zero_()
    last.bias.copy_(-(torch.arange(1, len(last.bias) + 1) - num_tokens - 0.1).abs())
