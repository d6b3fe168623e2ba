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
        if model.decoder.gate.num_experts > 1:  # of many images some go to each expert
            images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
            score = model.decoder.gate.score
            score[1].bias -= score(model.eval().encode(images).mean(1)).mean(0)
    config = OmegaConf.to_container(cfg, resolve=True)
    artifacts = {"format_version": FORMAT_VERSION, "config": config, "tokenizer": tokenizer.to_json()}
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "fastcap": artifacts}, path)
    return path
