import pytest
import torch

from fastcap.backbone.spatial_mamba import CrossScanMixer, SpatialMambaBackbone


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SpatialMambaBackbone(
        dims=(32, 64), depths=(1, 2), stem_dims=(16,), stem_depths=(1, 2), head_dim=8, expand=1.0
    )


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (50, 70)])
def test_any_size_maps_to_its_grid(backbone, size):
    features = backbone.eval()(torch.randn(2, 3, *size))
    rows, columns = (-(-side // 8) for side in size)
    assert features.shape == (2, rows * columns, backbone.feature_dim)
    assert features.isfinite().all()


def test_every_parameter_gets_a_gradient(backbone):
    weight = torch.randn(2, 64, 64)
    (backbone(torch.randn(2, 3, 64, 64)) * weight).sum().backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_every_patch_sees_every_other():
    torch.manual_seed(0)
    mixer = CrossScanMixer(16, d_state=4, head_dim=4, expand=1.0).double()
    torch.nn.init.normal_(mixer.in_proj.weight, std=0.5)
    # No decay, so that a far patch's share is not lost to rounding.
    torch.nn.init.constant_(mixer.a_log, -6.0)
    x = torch.randn(1, 5, 6, 16, dtype=torch.float64, requires_grad=True)
    y = mixer(x)
    for row, column in ((0, 0), (2, 3), (4, 5)):
        (gradient,) = torch.autograd.grad(y[0, row, column].sum(), x, retain_graph=True)
        assert (gradient.abs().sum(-1) > 0).all()


def test_batch_does_not_matter(backbone):
    backbone = backbone.double().eval()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    together = backbone(images)
    alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_bf16_autocast_stays_close(backbone):
    backbone = backbone.eval()
    images = torch.randn(2, 3, 64, 64)
    exact = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone(images)
    assert ((rough.float() - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": (32,), "depths": (1, 2)}, "backbone.depths"),
        ({"stem_depths": (1, 1)}, "stem_depths"),
        ({"dims": (24,), "depths": (1,), "expand": 1.0}, "head_dim"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpatialMambaBackbone(**arguments)
