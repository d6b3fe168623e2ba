"""What is done once to a model and its data before training starts."""

from __future__ import annotations

import hashlib

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fastcap.build import ConfigError
from fastcap.data.datamodule import CaptionDataModule
from fastcap.model import FastCap
from fastcap.training.checkpoints import read_checkpoint


def prepare_backbone(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap) -> None:
    """Do what is done once to a backbone before training: cache its features, compile it.

    A run that goes on from a checkpoint (``resume``) has its frozen weights there: they are taken first.

    Raises:
        ConfigError: If features are to be cached, and the backbone is being trained.
    """
    if cfg.resume and datamodule.feature_views:
        state = read_checkpoint(cfg.resume)["state_dict"]
        prefix = "model.backbone."
        model.backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    cache_features(cfg, datamodule, model)
    compile_backbone(cfg, model)


def cache_features(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap) -> None:
    """Have the frozen backbone encode the training images' augmented views once, where ``data.feature_views`` asks.

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

    def encode(images: Tensor) -> Tensor:
        with _precision(cfg, images):
            return model.backbone.feature_map(model.standardise(images))

    datamodule.cache_features(encode, _digest(cfg, model.backbone.net))


def _bf16(cfg: DictConfig) -> bool:
    return cfg.trainer.precision in ("bf16-mixed", "bf16")


def _precision(cfg: DictConfig, images: Tensor) -> torch.autocast:
    """Encode as validation will."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=_bf16(cfg))


def _digest(cfg: DictConfig, net: nn.Module) -> str:
    """Name what frozen weights give, in the run's precision."""
    digest = hashlib.sha256(b"bf16" if _bf16(cfg) else b"")
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def compile_backbone(cfg: DictConfig, model: FastCap) -> None:
    """Compile the backbone in place as ``cfg.compile`` asks; the names of its weights stay."""
    options = OmegaConf.select(cfg, "compile")
    if options and options.backend:
        model.backbone.compile(**OmegaConf.to_container(options))  # type: ignore[arg-type]
