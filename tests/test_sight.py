"""Sight first: what `objective=sight` teaches, and how slowly it may be unlearnt afterwards."""

import torch

from fastcap.build import build_datamodule, build_module
from fastcap.optim import parameter_groups, scale_learning_rates
from tests.tiny import tiny_config


def _system(*overrides):
    cfg = tiny_config(*overrides)
    torch.manual_seed(0)
    datamodule = build_datamodule(cfg)
    datamodule.prepare()
    datamodule.setup("fit")
    return build_module(cfg, datamodule).train(), next(iter(datamodule.train_dataloader()))


def test_sight_is_taught_and_the_decoder_is_not():
    module, batch = _system("objective=sight")
    losses, output = module.losses(batch, torch.Generator().manual_seed(0))
    assert len(output.logits) == len(batch), "one caption an image: the decoder is not what is trained"
    losses["total"].backward()
    moved = {name for name, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"alignment.projection.weight", "alignment.concept_head.weight", "length.head.4.weight"} <= moved
    assert any(name.startswith("backbone.") for name in moved)
    decoder = {name for name in moved if name.startswith("decoder.")}
    assert all(".gate." in name or ".gating." in name for name in decoder), decoder  # its balance is no caption's


def test_afterwards_the_image_memory_may_learn_slower_than_the_decoder():
    module, _ = _system("optim.alignment_lr_scale=0.05", "optim.backbone_lr_scale=0.1", "optim.optimizer.lr=1.0")
    optimizer = module.make_optimizer(parameter_groups(module.model, module.weight_decay, module.lr_scales))
    scale_learning_rates(optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for child, expected in (("backbone", 0.1), ("alignment", 0.05), ("decoder", 1.0), ("length", 1.0)):
        assert {rates[id(p)] for p in getattr(module.model, child).parameters()} == {expected}


def test_channels_that_judge_learn_with_sight_and_stay_as_they_are_afterwards():
    judge = "alignment.judge_dim=8", "data.phrase_mentions=2"
    module, batch = _system("objective=sight", *judge)
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    assert {"concept", "phrase", "judge_concept", "judge_phrase"} <= losses.keys()
    losses["total"].backward()
    alignment, dim = module.model.alignment, module.model.decoder.dim
    assert alignment.judge_head.weight.grad.any()
    assert alignment.projection.weight.grad[dim:].any()
    module, batch = _system("objective.judge_weight=0", *judge)
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    assert not any(name.startswith("judge") for name in losses)
    losses["total"].backward()
    alignment = module.model.alignment
    assert alignment.project(torch.randn(2, 4, alignment.projection.in_features)).seen is None, "nobody asks for it"
    assert not any(p.requires_grad for p in alignment.judge_head.parameters())
    assert not alignment.projection.weight.grad[dim:].any()
    assert alignment.projection.weight.grad[:dim].any()
