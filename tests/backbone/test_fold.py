import pytest
import torch

from fastcap.backbone.fold import fold_batch_norms
from fastcap.backbone.spatial_mamba import SpatialMambaBackbone


def test_folded_backbone_is_the_same_function():
    torch.manual_seed(0)
    backbone = SpatialMambaBackbone((32, 64), (1, 1), (16,), (2, 1), head_dim=8, expand=1.0).double()
    for _ in range(3):
        backbone(torch.randn(4, 3, 32, 32, dtype=torch.float64) * 2 + 1)  # statistics that matter
    images = torch.randn(2, 3, 40, 32, dtype=torch.float64)
    expected = backbone.eval()(images)
    assert fold_batch_norms(backbone) == 4
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    torch.testing.assert_close(backbone(images), expected, rtol=1e-9, atol=1e-9)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        fold_batch_norms(SpatialMambaBackbone((32,), (1,), (16,), (1, 1), head_dim=8, expand=1.0))
