"""Concept pre-training: what `objective=concept_pretraining` trains, and what later stages keep of it."""

import torch

from fastcap.build import build_datamodule, build_module
from fastcap.optim import parameter_groups, scale_learning_rates
from tests.tiny import tiny_config


def _system(*overrides):
    cfg = tiny_config(*overrides)
    torch.manual_seed(0)
    datamodule = build_datamodule(cfg)
    datamodule.setup("fit")
    return build_module(cfg, datamodule).train(), next(iter(datamodule.train_dataloader()))


def test_the_image_memory_is_trained_and_no_decoder_runs():
    module, batch = _system("objective=concept_pretraining", "concepts.min_phrase_count=2")
    losses, output = module.losses(batch, torch.Generator().manual_seed(0))
    assert output is None and losses.keys() == {"length", "alignment", "concept", "phrase", "total"}
    losses["total"].backward()
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in module.model.named_parameters() if p.grad is not None}
    moved = {name for name, p in module.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"alignment.projection.weight", "alignment.concepts.memory_head.weight", "length.head.4.weight"} <= moved
    assert any(name.startswith("backbone.") for name in moved)
    assert not any(name.startswith("decoder.") for name in trained)


def test_afterwards_the_image_memory_may_learn_slower_than_the_decoder():
    module, _ = _system("optim.alignment_lr_scale=0.05", "optim.backbone_lr_scale=0.1", "optim.optimizer.lr=1.0")
    optimizer = module.make_optimizer(parameter_groups(module, module.weight_decay, module.lr_scales))
    scale_learning_rates(optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for child, expected in (("backbone", 0.1), ("alignment", 0.05), ("decoder", 1.0), ("length", 1.0)):
        assert {rates[id(p)] for p in getattr(module.model, child).parameters()} == {expected}


def test_a_part_whose_rate_is_zero_has_no_gradients():
    module, batch = _system("optim.alignment_lr_scale=0", "optim.backbone_lr_scale=0")
    module.losses(batch, torch.Generator().manual_seed(0))[0]["total"].backward()
    moved = {name.split(".")[0] for name, p in module.model.named_parameters() if p.grad is not None}
    assert moved == {"decoder", "length"}
