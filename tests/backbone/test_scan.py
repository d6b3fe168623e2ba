import pytest
import torch

from fastcap.backbone import scan
from fastcap.backbone.scan import grid_scan
from tests.backbone.recurrence import grid_scan_reference


def _inputs(batch, height, width, per_direction, channels, states, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape, heads = (batch, height, width), 4 * per_direction

    def draw(*size):
        return torch.randn(*shape, *size, dtype=dtype, generator=generator).requires_grad_()

    log_decay = (-4 * torch.rand(*shape, heads, dtype=dtype, generator=generator)).requires_grad_()
    return draw(heads, channels), log_decay, draw(states), draw(states)


def _gradients(scan, inputs, **options):
    """Outputs and the gradients of a weighted sum of them."""
    y = scan(*inputs, **options)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, *torch.autograd.grad((y * weight).sum(), inputs)


def test_images_are_the_same_a_few_at_a_time(monkeypatch):
    inputs = _inputs(5, 3, 7, 1, 3, 4)
    together = _gradients(grid_scan, inputs, chunk_size=4)
    monkeypatch.setattr(scan, "_SLICE", 2 * inputs[0][0].numel())  # two, two and one
    for whole, sliced in zip(together, _gradients(grid_scan, inputs, chunk_size=4), strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_gradients_in_lower_precision(dtype, tolerance, strength):
    x, log_decay, b, c = (t.detach() for t in _inputs(2, 10, 15, 1, 8, 16))
    inputs = [t.requires_grad_() for t in (x, log_decay * strength, b, c)]
    # Only the decays keep their precision, as the mixer keeps them.
    lowered = [t.detach().to(torch.float32 if i == 1 else dtype).requires_grad_() for i, t in enumerate(inputs)]
    pairs = zip(_gradients(grid_scan_reference, inputs), _gradients(grid_scan, lowered), strict=True)
    for i, (exact, found) in enumerate(pairs):
        assert found.dtype == (dtype if i == 0 else lowered[i - 1].dtype)
        assert (found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-3) < tolerance


def test_a_second_derivative_is_refused():
    inputs = _inputs(1, 3, 3, 1, 2, 2)
    y = grid_scan(*inputs, chunk_size=2)
    [grad] = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
