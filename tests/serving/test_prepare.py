"""A model prepared to serve is the model that was trained, only faster."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fastcap.build import load_checkpoint
from fastcap.serving import eager
from fastcap.serving.eager import prepare_model
from fastcap.utils.prepacking import PackedLinear
from tests.tiny_captioner import painted, write_checkpoint

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
IMAGES = torch.tensor(np.stack([painted(seed) for seed in range(12)])).permute(0, 3, 1, 2)


KINDS = {
    "moe": [],
    "every expert": ["decoder.top_k=2"],
    "autoregressive": ["decoder=autoregressive_mini", "refinement=greedy", "refinement.num_beams=3"],
    "autoregressive, every expert": [
        "decoder=autoregressive_mini",
        "refinement=greedy",
        "refinement.num_beams=3",
        "decoder.top_k=2",
    ],
}


@pytest.fixture(scope="module", params=list(KINDS))
def loaded(request, tmp_path_factory):
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("prepare") / "tiny.ckpt", *KINDS[request.param]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_captions_stay(loaded, mode):
    model = copy.deepcopy(loaded.model)
    with mode():
        expected = model(IMAGES)
        prepare_model(model, IMAGES.shape[-1])
        result = model(IMAGES)
        assert torch.equal(result.tokens, expected.tokens)
        torch.testing.assert_close(result.scores, expected.scores, rtol=1e-4, atol=1e-4)
        one = model(IMAGES[:1])
        assert torch.equal(one.tokens[0][: one.lengths[0]], expected.tokens[0][: expected.lengths[0]])


@needs_onednn
def test_what_sees_many_rows_is_packed(loaded):
    model = copy.deepcopy(loaded.model)
    prepare_model(model, IMAGES.shape[-1])
    decoder = model.decoder
    packed = [name for name, module in decoder.named_modules() if isinstance(module, PackedLinear)]
    assert isinstance(model.alignment.projection, PackedLinear) and "head.packed" in packed
    plain = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    if decoder.gate.top_k == decoder.num_experts:
        assert "joined.memory" in packed
    else:
        assert any(name.endswith("cross_attention.memory") for name in packed)
    words = [name for name in (*packed, *plain) if name.endswith("qkv")]
    assert words and all((name in plain) == decoder.causal for name in words), "word after word is one row a product"
    assert model.length.head[1].__class__ is nn.Linear


@needs_onednn
def test_what_would_change_results_is_not_done(loaded, monkeypatch):
    class Wrong(PackedLinear):
        def forward(self, x):
            return super().forward(x) * 1.01

    monkeypatch.setattr(eager, "PackedLinear", Wrong)
    model = copy.deepcopy(loaded.model)
    expected = model(IMAGES)
    prepare_model(model, IMAGES.shape[-1])
    assert not any(isinstance(module, PackedLinear) for module in model.decoder.modules())
    assert torch.equal(model(IMAGES).tokens, expected.tokens)
