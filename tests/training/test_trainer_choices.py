"""What conf/trainer and `compile` promise."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from fastcap.build import build_backbone, build_trainer
from fastcap.jobs.prepare import compile_backbone
from fastcap.optim import clip_gradients
from fastcap.training import AtomicCheckpointIO
from tests.tiny import tiny_config


def test_the_backbone_is_compiled_where_asked():
    torch.manual_seed(0)
    for backend in (None, "eager"):
        cfg = tiny_config(f"compile.backend={backend or 'null'}")
        backbone, images = build_backbone(cfg).eval(), torch.randn(1, 3, 32, 32)
        names, expected = list(backbone.state_dict()), backbone(images)
        counters.clear()
        compile_backbone(cfg, SimpleNamespace(backbone=backbone))
        torch.testing.assert_close(backbone(images), expected)
        assert (counters["stats"]["unique_graphs"] > 0) == (backend is not None)
        assert list(backbone.state_dict()) == list(copy.deepcopy(backbone).state_dict()) == names


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_reaches_every_group_with_any_optimiser(fused):
    layers = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    optimizer = torch.optim.AdamW([{"params": layer.parameters()} for layer in layers], fused=fused)
    (1e3 * sum(layer(torch.ones(1, 4)).sum() for layer in layers)).backward()
    clip_gradients(optimizer, 1.0)
    norm = torch.cat([p.grad.flatten() for layer in layers for p in layer.parameters()]).norm()
    assert norm.item() == pytest.approx(1.0, abs=1e-4)


def test_every_trainer_writes_whole_checkpoints(tmp_path):
    trainer = build_trainer(tiny_config("trainer.accumulate_grad_batches=3"), tmp_path)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO) and trainer.accumulate_grad_batches == 3
