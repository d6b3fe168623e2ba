"""Features computed once equal those of each epoch; distilled captions take their share."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastcap.build import ConfigError, build_datamodule, build_module
from fastcap.data import DataError
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.train import cache_features, train
from fastcap.training.checkpoints import read_checkpoint
from tests.tiny import tiny_config

CAPTIONS = [[f"a dog{i % 3} runs", f"the dog{i % 3}"] for i in range(9)]


def tokenizer(captions):
    return train_word_tokenizer(captions, min_frequency=1)


def encode(pixels):
    return pixels.permute(0, 2, 3, 1).float() / 256


@pytest.fixture
def data(make_set, tmp_path):
    source = make_set(CAPTIONS)

    def make(**settings):
        settings = {"cache_dir": tmp_path / "cache", "horizontal_flip": True, "crop_scale": 0.5} | settings
        return CaptionDataModule(source, tokenizer, image_size=8, batch_size=3, **settings)

    return make


def batches(module, epoch):
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def test_features_are_those_of_the_epochs_own_views(data):
    plain, cached = data(), data(feature_views=3)
    cached.cache_features(encode, "key")
    whole = plain._dataset("train", training=True)
    for epoch in (0, 4):
        for batch in batches(cached, epoch):
            places = batch.image_ids.numpy() - 100
            for place, features in zip(places, batch.features, strict=True):
                view = (epoch + int(place)) % 3
                pixels = whole.pixels(view, np.array([place]))[0]
                torch.testing.assert_close(features, encode(pixels)[0].half())
            assert batch.images.shape == (3, 3, 0, 0) and len(batch) == 3
    views = {tuple(cached._dataset("train", True).features[v, 0].ravel()[:9].tolist()) for v in range(3)}
    assert len(views) == 3, "views differ"


def test_features_are_computed_once_and_anew_for_another_encoder(data):
    calls = []

    def counted(pixels):
        calls.append(len(pixels))
        return encode(pixels)

    data(feature_views=2).cache_features(counted, "key")
    assert sum(calls) == 18
    data(feature_views=2).cache_features(counted, "key")
    assert sum(calls) == 18
    data(feature_views=2).cache_features(counted, "another")
    assert sum(calls) == 36


def test_too_little_space_is_noticed_at_once(data, tmp_path, monkeypatch):
    """Twelve minutes of encoding must not end at a full disk: the first images tell how much is needed."""
    seen = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=20_735))
    module = data(feature_views=6)
    with pytest.raises(DataError, match=r"it takes 0\.0 GB, 0\.0 are free.*another cache_dir"):
        module.cache_features(lambda pixels: seen.append(len(pixels)) or encode(pixels), "a")
    assert seen == [9] and not list((tmp_path / "cache").glob("*features*.npy*"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=20_736))  # 6 x 9 x 8 x 8 x 3 x 2 bytes
    module.cache_features(encode, "a")


def test_a_trained_backbone_is_refused():
    cfg = tiny_config("data.feature_views=2", "data.cache_dir=unused")
    datamodule = build_datamodule(cfg)
    with pytest.raises(ConfigError, match=r"data\.feature_views"):
        cache_features(cfg, datamodule, build_module(cfg, datamodule).model)


def frozen_config(tmp_path, *overrides):
    """A tiny run on the features of a random, frozen encoder."""
    encoder = ["backbone=timm", "backbone.name=test_resnet", "backbone.frozen=true"]
    data = ["data.image_size=64", "data.feature_views=2", f"data.cache_dir={tmp_path}/cache", "data.source.num_val=8"]
    return tiny_config(*encoder, *data, *overrides)


def test_what_comes_after_a_frozen_net_is_trained_on_cached_features(tmp_path):
    cfg = frozen_config(tmp_path, "trainer.max_epochs=2", "backbone.norm=true")
    assert train(cfg, tmp_path / "run")["val/loss"] > 0
    state = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert state["model.backbone.norm.num_batches_tracked"] == 2 * 32 // 8
    (cached,) = (tmp_path / "cache").glob("*features*.npy")
    features = torch.from_numpy(np.load(cached).astype(np.float32))
    assert features.shape[:2] == (2, 32)
    mean = features.mean((0, 1, 2, 3))
    share = 1 - 0.9 ** (2 * 32 // 8)  # of the running mean that batches have brought in
    assert torch.allclose(state["model.backbone.norm.running_mean"], share * mean, atol=0.1 * mean.abs().max())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_distilled_captions_take_their_share(data, tmp_path, share):
    path = tmp_path / "teacher.json"
    path.write_text(json.dumps([{"image_id": 100 + i, "caption": "dog0 the a"} for i in range(8)]))
    module = data(distilled_captions=[path], distilled_share=share, captions_per_image=4)
    theirs = module.tokenizer.encode_batch(["dog0 the a"])[0]
    found, last = [], []
    for epoch in range(10):
        for batch in batches(module, epoch):
            for image_id, tokens in zip(batch.image_ids.tolist(), batch.tokens.tolist(), strict=True):
                (last if image_id == 108 else found).extend(row[:3] == theirs for row in tokens)
    assert not any(last), "no teacher captioned the last image"
    assert np.mean(found) == pytest.approx(share, abs=0.1 if share == 0.5 else 0)


def test_a_resumed_run_finds_the_features_of_its_own_weights(tmp_path):
    from fastcap.backbone.timm_encoder import create_net

    torch.manual_seed(7)
    torch.save(create_net("test_resnet").state_dict(), tmp_path / "net.pth")
    cfg = frozen_config(tmp_path, f"backbone.pretrained={tmp_path}/net.pth", "trainer.max_epochs=1")
    train(cfg, tmp_path / "run")
    features = set((tmp_path / "cache").glob("*.npy"))
    cfg.trainer.max_epochs, cfg.resume = 2, "last"
    train(cfg, tmp_path / "run")
    assert set((tmp_path / "cache").glob("*.npy")) == features
