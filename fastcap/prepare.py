"""What is done once to a model and its data before training starts."""

from __future__ import annotations

import hashlib

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fastcap.build import ConfigError, read_checkpoint
from fastcap.data.datamodule import CaptionDataModule
from fastcap.model import FastCap


def cache_features(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap) -> None:
    """Have the frozen backbone encode the training images' augmented views once, where ``data.feature_views`` asks.

    A run that goes on from a checkpoint (``resume``) has its frozen weights there: they are taken first.
    Under ``trainer.precision=bf16-mixed`` they are those that validation sees, encoded in bf16.

    Raises:
        ConfigError: If the backbone is being trained: its features would be stale after the first step.
    """
    if not datamodule.feature_views:
        return
    if not getattr(model.backbone, "frozen", False):
        raise ConfigError(
            f"data.feature_views = {datamodule.feature_views} needs a frozen backbone (backbone.frozen=true, as "
            "backbone=efficientnet_lite0 has it)"
        )
    if cfg.resume:
        state = read_checkpoint(cfg.resume)["state_dict"]
        prefix = "model.backbone."
        model.backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    bf16 = cfg.trainer.precision in ("bf16-mixed", "bf16")
    digest = hashlib.sha256(b"bf16" if bf16 else b"")
    for name, value in model.backbone.net.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model.backbone.feature_map(model.standardise(images))

    datamodule.cache_features(encode, digest.hexdigest())


def compile_backbone(cfg: DictConfig, model: FastCap) -> None:
    """Compile the backbone in place as ``cfg.compile`` asks; the names of its weights stay."""
    options = OmegaConf.select(cfg, "compile")
    if options and options.backend:
        model.backbone.compile(**OmegaConf.to_container(options))  # type: ignore[arg-type]
