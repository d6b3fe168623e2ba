"""A frozen backbone encodes the training images once, before training."""

from __future__ import annotations

import hashlib

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from fastcap.build import ConfigError
from fastcap.data.datamodule import CaptionDataModule
from fastcap.model import FastCap
from fastcap.training.machine import run_precision


def cache_features(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap) -> None:
    """Have the frozen backbone encode the training images' augmented views, where ``data.feature_views`` asks.

    They are those that validation sees, in the run's precision, which is part of the cache's key.

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
    bf16 = run_precision(cfg.trainer).startswith("bf16")

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model.backbone.feature_map(model.normalize(images))

    encoder = getattr(model.backbone, "stem", model.backbone).net
    datamodule.cache_features(encode, cache_key(encoder, bf16))


def cache_key(encoder: nn.Module, bf16: bool) -> str:
    """Name what frozen weights give, in a precision."""
    digest = hashlib.sha256(b"bf16" if bf16 else b"")
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
