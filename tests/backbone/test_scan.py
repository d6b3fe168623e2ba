from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.backbone import routes
from fastcap.backbone.scan import scan_reference, ssd_scan


def _inputs(batch, length, groups, per_group, channels, states, dtype=torch.float64, with_state=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    heads = groups * per_group
    log_decay = (-4 * torch.rand(batch, length, heads, dtype=dtype, generator=generator)).requires_grad_()
    state = draw(batch, heads, channels, states) if with_state else None
    x, b, c = (
        draw(batch, length, heads, channels),
        draw(batch, length, groups, states),
        draw(batch, length, groups, states),
    )
    return x, log_decay, b, c, state


def _gradients(scan, inputs):
    """Outputs, final state and the gradients of a weighted sum of both."""
    y, final = scan(*inputs)
    weight_y, weight_f = (torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in (y, final))
    total = (y * weight_y).sum() + (final * weight_f).sum()
    return y, final, *torch.autograd.grad(total, [t for t in inputs if t is not None])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    channels=st.integers(1, 5),
    states=st.integers(1, 6),
    chunk_size=st.integers(1, 40),
    with_state=st.booleans(),
)
def test_ssd_equals_the_recurrence(batch, length, groups, per_group, channels, states, chunk_size, with_state):
    inputs = _inputs(batch, length, groups, per_group, channels, states, with_state=with_state, seed=length)
    results = [_gradients(scan, inputs) for scan in (scan_reference, partial(ssd_scan, chunk_size=chunk_size))]
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("with_state", [True, False])
def test_images_are_the_same_a_few_at_a_time(monkeypatch, with_state):
    inputs = _inputs(5, 21, 2, 2, 3, 4, with_state=with_state)
    scan = partial(ssd_scan, chunk_size=4)
    together = _gradients(scan, inputs)
    monkeypatch.setattr(routes, "_SLICE", 2 * inputs[0][0].numel())  # two, two and one
    for whole, sliced in zip(together, _gradients(scan, inputs), strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_gradients_in_lower_precision(dtype, tolerance, strength):
    x, log_decay, b, c, state = (t.detach() for t in _inputs(2, 150, 2, 2, 8, 16))
    inputs = [t.requires_grad_() for t in (x, log_decay * strength, b, c, state)]
    # Only the decays keep their precision, as the mixer keeps them.
    lowered = [t.detach().to(torch.float32 if i == 1 else dtype).requires_grad_() for i, t in enumerate(inputs)]
    pairs = zip(_gradients(scan_reference, inputs), _gradients(ssd_scan, lowered), strict=True)
    for i, (exact, found) in enumerate(pairs):
        assert i < 2 or found.dtype == lowered[i - 2].dtype
        assert (found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3) < tolerance


def test_a_second_derivative_is_refused():
    inputs = _inputs(1, 9, 1, 1, 2, 2)
    y, _ = ssd_scan(*inputs, chunk_size=2)
    [grad] = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_strong_decays_stay_finite():
    x, _, b, c, _ = _inputs(1, 200, 1, 1, 4, 4, dtype=torch.float32)
    log_decay = torch.full((1, 200, 1), -60.0, requires_grad=True)
    y, final = ssd_scan(x, log_decay, b, c)
    y.sum().backward()
    assert y.isfinite().all() and final.isfinite().all()
    assert x.grad.isfinite().all() and log_decay.grad.isfinite().all()
