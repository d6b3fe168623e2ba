import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("timm")
from fastcap.backbone.hybrid import HybridSpatialMamba


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return HybridSpatialMamba(pretrained=False, dim=32, depth=1, fine_dim=32, head_dim=8, feature_dropout=0.5)


def test_maps_give_the_same_features_as_images(backbone):
    backbone.eval()
    images = torch.randn(2, 3, 64, 96)
    features = backbone(images)
    assert features.shape == (2, 2 * 3, backbone.feature_dim)
    torch.testing.assert_close(features, backbone.from_map(backbone.feature_map(images)))


def test_all_but_the_encoder_gets_a_gradient(backbone):
    backbone.train()
    assert not backbone.net.training
    (backbone(torch.randn(4, 3, 64, 64)) * torch.randn(4, 4, 32)).sum().backward()
    for name, parameter in backbone.named_parameters():
        if name.startswith("net."):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_fine_blocks_read_the_encoders_level_of_stride_16(backbone):
    backbone.eval()
    images = torch.randn(2, 3, 64, 64)
    pixels = images * backbone.pixel_scale + backbone.pixel_shift
    (level,) = backbone.net.forward_intermediates(pixels, indices=[3], intermediates_only=True, output_fmt="NCHW")
    grid = backbone.feature_map(images)[..., backbone._fine_channels].permute(0, 3, 1, 2)
    torch.testing.assert_close(F.pixel_shuffle(grid, 2), level, rtol=1e-4, atol=1e-5)
