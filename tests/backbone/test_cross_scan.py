import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.backbone.scan import _routes, direction_visits, grid_scan
from tests.backbone.recurrence import grid_scan_reference

CHUNKED, WHOLE = {"chunk_size": 5}, {"chunk_size": 10_000}


def test_directions_come_to_every_patch_in_their_order():
    visits = direction_visits(2, 3).tolist()
    assert visits == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), per_direction=st.integers(1, 3), chunk_size=st.integers(1, 30)
)
@settings(max_examples=30, deadline=None)
def test_placing_undoes_visiting(height, width, per_direction, chunk_size):
    heads, length = 4 * per_direction, height * width
    routes = _routes(height, width, heads, chunk_size, None)
    tracer = torch.arange(length * heads)
    assert torch.equal(tracer[routes.visited][routes.placed], tracer)
    tracer = torch.arange(length)
    assert torch.equal(tracer[routes.read][routes.read_by], tracer.expand(4, -1))


@pytest.mark.parametrize("form", [CHUNKED, WHOLE], ids=["chunks", "one chunk"])
@given(height=st.integers(1, 7), width=st.integers(1, 7), per_direction=st.integers(1, 2), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_grid_scan_equals_four_recurrences(form, height, width, per_direction, seed):
    generator = torch.Generator().manual_seed(seed)
    shape, heads = (2, height, width), 4 * per_direction

    def draw(*size):
        return torch.randn(*shape, *size, dtype=torch.float64, generator=generator).requires_grad_()

    log_decay = (-4 * torch.rand(*shape, heads, dtype=torch.float64, generator=generator)).requires_grad_()
    inputs = draw(heads, 3), log_decay, draw(5), draw(5)
    results = []
    for scan in (grid_scan_reference, lambda *args: grid_scan(*args, **form)):
        y = scan(*inputs)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append((y, *torch.autograd.grad((y * weight).sum(), inputs)))
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
