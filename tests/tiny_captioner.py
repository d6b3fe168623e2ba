"""A tiny captioner with random weights: what tests export."""

import numpy as np
import torch
from omegaconf import OmegaConf

from fastcap.build import build_concepts, build_datamodule, build_model
from fastcap.training.checkpoints import FORMAT_VERSION
from tests.tiny import tiny_config


def painted(seed):
    """Some blots of colour, uint8. (32, 32, 3)"""
    blots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return blots.repeat(8, axis=0).repeat(8, axis=1)


def write_checkpoint(path, *overrides):
    cfg = tiny_config(*overrides)
    datamodule = build_datamodule(cfg)
    tokenizer = datamodule.tokenizer
    torch.manual_seed(3)
    captions = list(datamodule.reference_tokens().values())
    model = build_model(cfg, tokenizer, build_concepts(cfg, tokenizer, captions))
    model.ngrams.count(ids for texts in captions for ids in texts)
    with torch.no_grad():  # captions and experts that differ from image to image, and words by more than rounding
        model.alignment.projection.weight *= 10
        for name in ("word", "gate", "context"):
            for parameter in getattr(model.decoder, name).parameters():
                parameter *= 4
        images = torch.tensor(np.stack([painted(seed) for seed in range(12)])).permute(0, 3, 1, 2)
        gate = model.decoder.gate.score
        gate[-1].bias -= gate(model.eval().encode(images).mean(1)).mean(0)
    config = OmegaConf.to_container(cfg, resolve=True)
    artifacts = {"format_version": FORMAT_VERSION, "config": config, "tokenizer": tokenizer.to_json()}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "fastcap": artifacts}, path)
    return path
