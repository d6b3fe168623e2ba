import pytest
import torch

from fastcap.backbone.spatial_mamba import CrossScanMixer, SpatialMambaBackbone


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SpatialMambaBackbone((32, 64), (1, 2), (16,), (1, 2), head_dim=8, expand=1.0)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (50, 70)])
def test_any_size_maps_to_its_grid(backbone, size):
    features = backbone.eval()(torch.randn(2, 3, *size))
    rows, columns = (-(-side // 8) for side in size)
    assert features.shape == (2, rows * columns, backbone.feature_dim)
    assert features.isfinite().all()


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


@pytest.mark.slow
def test_it_compiles_without_a_graph_break(backbone):
    backbone, images = backbone.eval(), torch.linspace(-2, 2, 3 * 64 * 96).view(1, 3, 64, 96)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), backbone(images), rtol=1e-5, atol=1e-5)


def test_bf16_autocast_stays_close(backbone):
    backbone = backbone.eval()
    images = torch.randn(2, 3, 64, 64)
    exact = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone(images)
    assert ((rough.float() - exact).norm() / exact.norm()) < 0.05


def test_turning_the_picture_round_turns_the_features():
    """All directions are treated alike: with step sizes and decays alike, a half turn of the grid commutes."""
    torch.manual_seed(0)
    mixer = CrossScanMixer(16, d_state=4, head_dim=4, expand=1.0).double()
    with torch.no_grad():
        mixer.dt_bias.fill_(-2.0)
        mixer.a_log.fill_(0.5)
        mixer.in_proj.weight[-mixer.num_heads :] = 0
        mixer.conv.weight.copy_((mixer.conv.weight + mixer.conv.weight.flip(2, 3)) / 2)
    x = torch.randn(2, 4, 5, 16, dtype=torch.float64)
    turned = mixer(x.flip(1, 2)).flip(1, 2)
    # The directions are different heads, which a half turn swaps.
    swap = torch.arange(16).view(2, 2, 4).flip(1).flatten()
    u = torch.cat([swap, torch.arange(16, 24)])
    with torch.no_grad():
        rows = torch.cat([swap, 16 + u, torch.arange(40, 44)])
        mixer.in_proj.weight.copy_(mixer.in_proj.weight[rows])
        mixer.conv.weight.copy_(mixer.conv.weight[u])
        mixer.conv.bias.copy_(mixer.conv.bias[u])
        mixer.out_proj.weight.copy_(mixer.out_proj.weight[:, swap])
    torch.testing.assert_close(turned, mixer(x), rtol=1e-9, atol=1e-9)
