"""experiment=coco_base runs: its own model, on a tiny folder laid out as `make data` does."""

import json
import math

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from fastcap.backbone.spatial_mamba import SpatialMambaBackbone
from fastcap.build import CONFIG_DIR, build_datamodule, build_module, build_trainer
from fastcap.decoder.moe_decoder import MoEDecoder

WORDS = "a red bus on the wet street behind two dogs near an old house with green doors".split()

CALLBACKS = ("checkpoint", "samples", "refinement", "speed_quality", "throughput", "progress", "summary")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Karpathy's layout: 4, 4 and 4 JPEG files of 40 x 30 px, five captions each."""
    root, chance = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    number = 0
    for split, count, folder in (("train", 4, "train2014"), ("val", 4, "val2014"), ("test", 4, "val2014")):
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
        images, captions = [], []
        for _ in range(count):
            number += 1
            name = f"{folder}/COCO_{folder}_{number:012}.jpg"
            Image.fromarray(chance.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / "images" / name)
            images.append({"id": number, "file_name": name})
            captions += [
                {"id": 10 * number + k, "image_id": number, "caption": " ".join(chance.choice(WORDS, 6 + k))}
                for k in range(5)
            ]
        path = root / f"annotations/captions_karpathy_{split}.json"
        path.write_text(json.dumps({"images": images, "annotations": captions}))
    return root


def experiment(*overrides):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", overrides=["experiment=coco_base", *overrides])


def test_it_trains_its_own_model_on_a_coco_folder(coco, tmp_path, monkeypatch):
    """Widths, layers, experts, precision and schedule as they are; 64 px, batches of 2, one CPU."""
    monkeypatch.chdir(tmp_path)
    cfg = experiment(
        f"data.source.root={coco}",
        "data.image_size=64",
        "data.batch_size=2",
        "data.eval_batch_size=4",
        "data.num_workers=0",
        "tokenizer.min_frequency=1",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        "trainer.log_every_n_steps=1",
        "+trainer.enable_checkpointing=false",  # one would be a gigabyte
        *(f"callbacks.{name}=null" for name in CALLBACKS),
        "logger=csv",
        "metrics.tokenizer=simple",
    )
    datamodule = build_datamodule(cfg)
    datamodule.prepare()
    module = build_module(cfg, datamodule)
    assert isinstance(module.model.backbone, SpatialMambaBackbone) and isinstance(module.model.decoder, MoEDecoder)
    assert module.model.backbone.feature_dim == 448 and module.model.decoder.num_experts == 4
    before = module.model.decoder.word.weight.detach().clone()
    trainer = build_trainer(cfg, tmp_path)
    trainer.fit(module, datamodule=datamodule)
    assert trainer.global_step == 2
    assert math.isfinite(trainer.callback_metrics["train/loss"]) and "val/cider" in trainer.callback_metrics
    assert not before.equal(module.model.decoder.word.weight)
    assert len(module.predictions) == 4


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_it_goes_with_several_gpus(trainer):
    cfg = experiment(f"trainer={trainer}")
    assert cfg.trainer.precision == "auto" and cfg.trainer.max_epochs > 1
    assert 224 <= cfg.data.image_size <= 384
