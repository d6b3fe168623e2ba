import pytest
import torch

pytest.importorskip("timm")
from fastcap.backbone.efficientnet_lite import EfficientNetLite
from fastcap.backbone.spatial_mamba import SpatialMambaBackbone


def behind(dims=(32, 32), **stem):
    torch.manual_seed(0)
    stem = EfficientNetLite(pretrained=False, **{"position": False, "levels": [3, 4], **stem})
    return SpatialMambaBackbone(dims, [1] * len(dims), head_dim=8, expand=1.0, stem=stem, stem_dropout=0.5)


@pytest.fixture
def backbone():
    return behind()


def test_maps_give_the_same_features_as_images(backbone):
    backbone.eval()
    images = torch.randn(2, 3, 64, 96)
    features = backbone(images)
    assert features.shape == (2, 2 * 3, backbone.feature_dim)
    torch.testing.assert_close(features, backbone.from_map(backbone.feature_map(images)))


@pytest.mark.parametrize("frozen", [True, False])
def test_all_but_a_frozen_encoder_gets_a_gradient(frozen):
    backbone = behind(frozen=frozen).train()
    assert backbone.frozen == frozen and backbone.stem.net.training != frozen
    (backbone(torch.randn(4, 3, 64, 64)) * torch.randn(4, 4, 32)).sum().backward()
    for name, parameter in backbone.named_parameters():
        if frozen and name.startswith("stem.net."):
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_first_stage_reads_the_encoders_level_of_stride_16(backbone):
    backbone.eval()
    stem, levels, images = backbone.stem, backbone.levels, torch.randn(2, 3, 64, 64)
    pixels = images * stem.pixel_scale + stem.pixel_shift
    (level,) = stem.net.forward_intermediates(pixels, indices=[3], intermediates_only=True, output_fmt="NCHW")
    levels.norm = torch.nn.Identity()
    expected = levels.positions[0](levels.projections[0](level.permute(0, 2, 3, 1)))
    torch.testing.assert_close(levels(backbone.feature_map(images))[0], expected, rtol=1e-4, atol=1e-5)


def test_stages_and_levels_must_fit():
    assert behind((32,), levels=[])(torch.randn(2, 3, 64, 64)).shape == (2, 4, 32)
    with pytest.raises(ValueError, match=r"backbone\.stem\.levels = \[4\]"):
        behind(levels=[4])
    with pytest.raises(ValueError, match=r"backbone\.stem: norm and position"):
        behind(position=True)
