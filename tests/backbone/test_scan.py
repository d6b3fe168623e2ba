import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.backbone.scan import cross_merge, cross_scan, cross_scan_order, scan_reference, ssd_scan


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
    leaves = [t for t in inputs if t is not None]
    results = []
    for scan in (scan_reference, lambda *args: ssd_scan(*args, chunk_size=chunk_size)):
        y, final = scan(*inputs)
        weight_y, weight_f = (torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in (y, final))
        grads = torch.autograd.grad((y * weight_y).sum() + (final * weight_f).sum(), leaves)
        results.append((y, final, *grads))
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_ssd_in_lower_precision(dtype, tolerance):
    inputs = _inputs(2, 150, 2, 2, 8, 16)
    exact, final = scan_reference(*inputs)
    # Only the decays keep their precision, as the mixer keeps them.
    lowered = [t.detach().to(dtype) if i != 1 else t.detach().float() for i, t in enumerate(inputs)]
    y, state = ssd_scan(*lowered)
    assert y.dtype == dtype and state.dtype == torch.float32
    scale = exact.abs().max()
    assert (y.double() - exact).abs().max() / scale < tolerance
    assert (state.double() - final).abs().max() / scale < tolerance


def test_strong_decays_stay_finite():
    x, _, b, c, _ = _inputs(1, 200, 1, 1, 4, 4, dtype=torch.float32)
    log_decay = torch.full((1, 200, 1), -60.0, requires_grad=True)
    y, final = ssd_scan(x, log_decay, b, c)
    y.sum().backward()
    assert y.isfinite().all() and final.isfinite().all()
    assert x.grad.isfinite().all() and log_decay.grad.isfinite().all()


@given(height=st.integers(1, 9), width=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_merge_undoes_scan(height, width):
    tracer = torch.arange(2 * height * width * 4 * 3, dtype=torch.float32).view(2, height * width, 4, 3)
    order = cross_scan_order(height, width)
    assert torch.equal(cross_merge(cross_scan(tracer, order), order), tracer)


def test_directions_walk_as_named():
    right, left, down, up = cross_scan_order(2, 3).tolist()
    assert right == [0, 1, 2, 3, 4, 5]
    assert left == right[::-1]
    assert down == [0, 3, 1, 4, 2, 5]
    assert up == down[::-1]


@pytest.mark.parametrize("direction", range(4))
def test_each_direction_reaches_what_it_should_and_no_more(direction):
    height, width = 4, 5
    order = cross_scan_order(height, width)
    length = height * width
    source = 7
    x = torch.zeros(1, length, 4, 1)
    x[0, source] = 1.0
    scanned = cross_scan(x, order).view(4, length, 1, 1)
    decay = torch.full((4, length, 1), -0.1)
    ones = torch.ones(4, length, 1, 1)
    y, _ = ssd_scan(scanned, decay, ones, ones)
    reached = cross_merge(y.view(1, 4, length, 1), order)[0, :, direction, 0] != 0
    row, column = torch.arange(length) // width, torch.arange(length) % width
    at = (row * width + column, -(row * width + column), column * height + row, -(column * height + row))[direction]
    assert torch.equal(reached, at >= at[source])
