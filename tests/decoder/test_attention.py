import pytest
import torch
from torch.nn import functional as F

from fastcap.decoder.attention import (
    RankAugmentedCrossAttention,
    RankAugmentedSelfAttention,
    SoftmaxCrossAttention,
    SoftmaxSelfAttention,
    kappa,
    merge_heads,
    split_heads,
)

SELF = [RankAugmentedSelfAttention, SoftmaxSelfAttention]
CROSS = [RankAugmentedCrossAttention, SoftmaxCrossAttention]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rala_quadratic(q, k, v, query_mean):
    """RALA written out as an L x L matrix of weights: the paper's formulas, nothing shared with the fast form."""
    length, width = k.shape[-2:]
    score = (query_mean.unsqueeze(-2) * k).sum(-1) / width**0.5
    alpha = length * score.softmax(-1)
    augmented = alpha.unsqueeze(-1) * k
    weights = q @ augmented.mT / length
    denominator = (q * augmented.mean(-2, keepdim=True)).sum(-1, keepdim=True) + 1e-6
    return (weights / denominator) @ v


def test_kappa_is_elu_plus_one():
    x = torch.cat([torch.linspace(-60, 60, 1001), torch.randn(500)]).double()
    x = x[x != 0].requires_grad_()
    (expected,) = torch.autograd.grad((F.elu(x) + 1).square().sum(), x)
    (gradient,) = torch.autograd.grad(kappa(x).square().sum(), x)
    torch.testing.assert_close(kappa(x), F.elu(x) + 1, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert bool((kappa(torch.tensor([-60.0, -17.5])) > 0).all()), "positive everywhere, in fp32 too"


def test_self_attention_is_the_quadratic_form():
    layer = RankAugmentedSelfAttention(24, num_heads=3).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    q, k, v, gate = layer.qkvo(x).chunk(4, -1)
    heads = [split_heads(t, 3) for t in (kappa(q), kappa(k), v)]
    y = merge_heads(rala_quadratic(*heads, heads[0].mean(2)))
    expected = layer.out((y + layer.conv(v.mT).mT) * gate)
    actual = layer(x, torch.zeros(2, 9, dtype=torch.bool))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_cross_attention_is_the_quadratic_form():
    layer = RankAugmentedCrossAttention(24, num_heads=3).double()
    x, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 40, 24, dtype=torch.float64)
    k, v, query = (split_heads(t, 3) for t in layer.memory(memory).chunk(3, -1))
    q, gate = layer.query(x).chunk(2, -1)
    y = rala_quadratic(kappa(split_heads(q, 3)), kappa(k), v, kappa(query).mean(2))
    expected = layer.out(merge_heads(y) * gate)
    torch.testing.assert_close(layer(x, layer.prepare(memory)), expected, rtol=1e-10, atol=1e-10)


def test_softmax_cross_attention_is_textbook():
    layer = SoftmaxCrossAttention(24, num_heads=3).double()
    x, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    k, v = (split_heads(t, 3) for t in layer.memory(memory).chunk(2, -1))
    weights = (split_heads(layer.query(x), 3) @ k.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(layer(x, layer.prepare(memory)), layer.out(merge_heads(weights @ v)))


@pytest.mark.parametrize("kind", SELF)
@pytest.mark.parametrize("padded", [14, 30])
def test_padding_changes_nothing(kind, padded):
    layer = kind(32, num_heads=4).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    longer = torch.cat([x, 100 * torch.randn(2, padded - 9, 32, dtype=torch.float64)], 1)
    pad = (torch.arange(padded) >= 9).expand(2, -1)
    short, long = layer(x, pad[:, :9]), layer(longer, pad)
    torch.testing.assert_close(long[:, :9], short, rtol=1e-9, atol=1e-9)
    assert (long[:, 9:] == 0).all()


@pytest.mark.parametrize("kind", SELF)
def test_a_row_of_padding_stays_finite(kind):
    layer = kind(16, num_heads=2)
    x = torch.randn(2, 4, 16, requires_grad=True)
    layer(x, torch.ones(2, 4, dtype=torch.bool)).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("kind", CROSS)
def test_captions_of_an_image_share_its_values(kind):
    layer = kind(32, num_heads=4).double()
    memory, captions = torch.randn(2, 6, 32).double(), torch.randn(2, 3, 5, 32).double()
    together = layer(captions.flatten(1, 2), layer.prepare(memory)).view(2, 3, 5, 32)
    for k in range(3):
        torch.testing.assert_close(together[:, k], layer(captions[:, k], layer.prepare(memory)))
