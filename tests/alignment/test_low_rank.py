import pytest
import torch

from fastcap.alignment.cmfa import CrossModalFeatureAlignment
from fastcap.alignment.low_rank import factorise, note_products


def _noted(inputs, decay=1.0):
    products = torch.zeros(inputs.shape[1] + 1, inputs.shape[1] + 1, dtype=inputs.dtype)
    for batch in inputs.split(10):
        note_products(products, batch, decay)
    return products


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_products_are_sums_and_older_ones_fade():
    inputs = torch.randn(20, 3, dtype=torch.double)
    first, second = (torch.cat([part, torch.ones(10, 1)], 1) for part in inputs.split(10))
    torch.testing.assert_close(_noted(inputs, 0.5), 0.5 * first.mT @ first + second.mT @ second)


def test_inputs_of_few_dimensions_lose_nothing():
    inputs = torch.randn(100, 4, dtype=torch.double) @ torch.randn(4, 12, dtype=torch.double) + 3.0
    weight, bias = torch.randn(9, 12, dtype=torch.double), torch.randn(9, dtype=torch.double)
    inner, outer, shift = factorise(weight, bias, _noted(inputs), torch.rand(9) + 0.1, 4)
    assert inner.shape == (4, 12) and outer.shape == (9, 4)
    torch.testing.assert_close(inputs @ inner.mT @ outer.mT + shift, inputs @ weight.mT + bias)


def test_a_rank_above_what_there_is_loses_nothing():
    inputs, weight, bias = torch.randn(100, 5), torch.randn(3, 5), torch.randn(3)
    inner, outer, shift = factorise(weight, bias, _noted(inputs), torch.ones(3), 8)
    assert inner.shape == (8, 5) and outer.shape == (3, 8)
    torch.testing.assert_close(inputs @ inner.mT @ outer.mT + shift, inputs @ weight.mT + bias, atol=1e-4, rtol=1e-4)


def test_nearest_on_the_inputs_met_and_where_it_matters():
    inputs = torch.randn(500, 12, dtype=torch.double) * torch.logspace(0, -2, 12, dtype=torch.double)
    weight, bias = torch.randn(9, 12, dtype=torch.double), torch.randn(9, dtype=torch.double)
    importance = torch.logspace(0, -3, 9, dtype=torch.double)
    expected = inputs @ weight.mT + bias

    def error(inner, outer, shift):
        return (importance * (inputs @ inner.mT @ outer.mT + shift - expected).square()).sum()

    found = error(*factorise(weight, bias, _noted(inputs), importance, 3))
    unweighted = error(*factorise(weight, bias, _noted(inputs), torch.ones(9), 3))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    blind = error(right[:3], left[:, :3] * values[:3], bias)
    assert found < unweighted < 0.7 * blind


@pytest.mark.parametrize(("rank", "noted", "message"), [(0, True, "rank of 0"), (2, False, "noted")])
def test_what_cannot_be_found(rank, noted, message):
    products = _noted(torch.randn(20, 5)) if noted else torch.zeros(6, 6)
    with pytest.raises(ValueError, match=message):
        factorise(torch.randn(3, 5), torch.randn(3), products, torch.ones(3), rank)


def _alignment(**settings):
    return CrossModalFeatureAlignment(
        12, 16, (-1, 0, 1, 1, 2), judge_dim=5, phrases=[(1, 2)], phrase_weights=[0.5], **settings
    )


def test_a_trained_judge_is_brought_to_a_lower_rank():
    full, low = _alignment(), _alignment(judge_rank=3)
    features = torch.randn(64, 6, 12)
    full.train().project(features)
    state = low.reduced(full.state_dict())
    low.load_state_dict({k: v for k, v in state.items() if k != "seen_products"}, strict=False)
    with torch.no_grad():
        expected = full.eval().concept_logits(full.project(features).seen)
        got = low.eval().concept_logits(low.project(features).seen)
    assert (got - expected).var() < 0.2 * expected.var(0).mean()  # three of four dimensions are left
    torch.testing.assert_close(got.mean(0), expected.mean(0))
    for alignment in (low, full):  # nothing more to do
        again = alignment.reduced(state)
        assert again.keys() == state.keys() and all(again[name] is state[name] for name in state)
    full.seen_products.zero_()
    earlier = {name: value for name, value in full.state_dict().items() if name != "seen_products"}
    for nothing_noted in (full.state_dict(), earlier):  # or a checkpoint from before it was
        with pytest.raises(ValueError, match="no inputs were noted"):
            low.reduced(nothing_noted)
