import pytest
import torch
from torch import nn

from fastcap.backbone.spatial_mamba import SpatialMambaBackbone
from fastcap.backbone.timm_encoder import TimmEncoder, prepare_for_inference


def _backbone():
    return SpatialMambaBackbone((32, 64), (1, 1), (16,), (2, 1), head_dim=8, expand=1.0)


def _with_statistics(net, dtype=torch.float32):
    """Norms that matter: other means and variances than 0 and 1."""
    torch.manual_seed(0)
    for _ in range(3):
        net(torch.randn(4, 3, 32, 32, dtype=dtype) * 2 + 1)
    return net.eval()


def test_folded_backbone_is_the_same_function():
    backbone = _with_statistics(_backbone().double(), torch.float64)
    images = torch.randn(2, 3, 40, 32, dtype=torch.float64)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()) == 4
    prepared = prepare_for_inference(backbone, 40)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    torch.testing.assert_close(prepared(images), backbone(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "ours"])
def test_prepared_is_the_same_function_at_any_size_and_batch(name):
    backbone = _with_statistics(_backbone() if name == "ours" else TimmEncoder(name))
    prepared = prepare_for_inference(backbone, 64)
    assert prepared is not backbone and not any(isinstance(m, nn.BatchNorm2d) for m in prepared.modules())
    with torch.inference_mode():
        for shape in [(1, 3, 64, 64), (3, 3, 64, 64), (2, 3, 48, 80)]:
            images = torch.randn(shape)
            expected = backbone(images)
            assert (prepared(images) - expected).norm() < 1e-4 * expected.norm(), shape
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()), "the original is left alone"


class _Shared(nn.Module):
    """One norm behind two convolutions: nothing here may be folded."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.second(self.act(self.norm(self.first(x))))))


class _PeeksAtConvolution(nn.Module):
    """The convolution's output is used twice, once without the norm: folding shows in the output."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.convolution(x)
        return x + self.norm(x)


@pytest.mark.parametrize("kind", [_Shared, _PeeksAtConvolution])
def test_what_cannot_be_prepared_stays_as_it_is(kind):
    net = _with_statistics(kind())
    assert prepare_for_inference(net, 16) is net
