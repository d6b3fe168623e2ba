"""A tiny captioner with random weights: what tests export."""

import torch
from omegaconf import OmegaConf

from fastcap.build import FORMAT_VERSION, build_datamodule, build_model
from tests.tiny import tiny_config


def write_checkpoint(path, *overrides):
    cfg = tiny_config(*overrides)
    datamodule = build_datamodule(cfg)
    tokenizer = datamodule.prepare()
    torch.manual_seed(3)
    model = build_model(cfg, tokenizer, datamodule.concept_weights())
    with torch.no_grad():  # captions and experts that differ from image to image, and words by more than rounding
        model.alignment.projection.weight *= 10
        for name in ("word", "gate", "context"):
            for parameter in getattr(model.decoder, name).parameters():
                parameter *= 4
    config = OmegaConf.to_container(cfg, resolve=True)
    artifacts = {"format_version": FORMAT_VERSION, "config": config, "tokenizer": tokenizer.to_json()}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "fastcap": artifacts}, path)
    return path
