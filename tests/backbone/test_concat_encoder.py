import pytest
import torch
from omegaconf import OmegaConf

from fastcap.backbone.concat_encoder import ConcatEncoder
from fastcap.backbone.timm_encoder import TimmEncoder, prepare_for_inference
from fastcap.build import build_backbone

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _encoder(name="resnet18", **options):
    return TimmEncoder(name, position=False, **{"frozen": True, **options})


def test_features_stand_side_by_side_patch_by_patch():
    """Each encoder's share of the features is what it gives alone, and lies where the grid has it."""
    parts = [_encoder(), _encoder("tf_efficientnet_lite0", levels=[4])]
    both = ConcatEncoder(parts, position=False)
    features = both(IMAGES)
    assert features.shape == (2, 6, both.feature_dim) and both.feature_dim == sum(part.feature_dim for part in parts)
    start = 0
    for part in parts:
        share = features[..., start : start + part.feature_dim]
        torch.testing.assert_close(share, part(IMAGES))
        start += part.feature_dim


def test_a_finer_grid_is_brought_to_the_first_ones():
    coarse, fine = _encoder(), _encoder("vit_tiny_patch16_224", options={"dynamic_img_size": True})
    both = ConcatEncoder([coarse, fine])
    assert fine.feature_map(IMAGES).shape[1:3] == (4, 6)
    assert both.feature_map(IMAGES).shape[1:3] == coarse.feature_map(IMAGES).shape[1:3] == (2, 3)


def test_prepared_for_inference_it_computes_the_same():
    both = ConcatEncoder([_encoder(), _encoder("tf_efficientnet_lite0")]).eval()
    prepared = prepare_for_inference(both, 64)
    assert prepared is not both
    with torch.inference_mode():
        torch.testing.assert_close(prepared(IMAGES), both(IMAGES), rtol=1e-3, atol=1e-3)


def test_what_it_cannot_join_is_refused():
    with pytest.raises(ValueError, match="at least two are needed, found 1"):
        ConcatEncoder([_encoder()])
    with pytest.raises(ValueError, match=r"encoders\.1: norm and position must be left out"):
        ConcatEncoder([_encoder(), TimmEncoder("resnet18")])


def test_no_part_reads_weights_that_a_checkpoint_will_fill_in(tmp_path):
    part = {"_target_": "fastcap.backbone.timm_encoder.TimmEncoder", "name": "resnet18", "position": False}
    part["pretrained"] = str(tmp_path / "gone.pth")
    target = "fastcap.backbone.concat_encoder.ConcatEncoder"
    cfg = OmegaConf.create({"backbone": {"_target_": target, "encoders": [part, part]}})
    with pytest.raises(ValueError, match=r"gone\.pth: no such file"):
        build_backbone(cfg)
    assert build_backbone(cfg, fresh=False).feature_dim == 1024
    assert cfg.backbone.encoders[0].pretrained == part["pretrained"]
