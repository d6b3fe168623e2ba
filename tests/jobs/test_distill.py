"""Pretraining of a backbone, tiny: it learns, it resumes, and experiments start from what it saved."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file, save_file

from fastcap.build import CONFIG_DIR, ConfigError, build_backbone, build_model, build_trainer, construct
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.jobs.distill import Teacher
from fastcap.jobs.pretrain import pretrain_backbone
from fastcap.training.checkpoints import CheckpointError
from fastcap.types import IMAGE_MEAN, IMAGE_STD
from tests.tiny import TINY, tiny_config

BACKBONE = [override for override in TINY if override.startswith("backbone.")]
SMALL = [
    "backbone=spatial_mamba_tiny",
    *BACKBONE,
    "backbone.drop_path=0",
    "images.cache_dir=null",
    "images.num_workers=0",
    "images.batch_size=8",
    "image_size=32",
    "logger=csv",
    "~callbacks.progress",
    "~callbacks.summary",
    "optim.optimizer.lr=3e-3",
    "trainer.precision=32-true",
]
COLOURS = {"red": (220, 40, 30), "blue": (30, 60, 220), "green": (40, 180, 60)}


def _config(name, *overrides):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose(name, overrides=[*SMALL, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Coloured noise, 12 pictures a class, in ImageNet's layout."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = (np.array(colour) + generator.normal(0, 25, (40, 48, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def _distill_config(folder, *overrides):
    return _config("distill", f"folder={folder}", "teacher_size=64", *overrides)


@pytest.fixture(scope="module")
def distilled(folder, tmp_path_factory):
    """One finished run: (configuration, folder, metrics)."""
    run_dir = tmp_path_factory.mktemp("distill")
    cfg = _distill_config(folder, "trainer.max_epochs=6")
    return cfg, run_dir, pretrain_backbone(cfg, run_dir)


def _column(run_dir, name):
    header, *rows = (run_dir / "metrics.csv").read_text().splitlines()
    index = header.split(",").index(name)
    return [float(row.split(",")[index]) for row in rows if row.split(",")[index]]


def test_distillation_learns_and_leaves_what_it_promises(distilled):
    _, run_dir, metrics = distilled
    losses, cosines = _column(run_dir, "val/loss"), _column(run_dir, "val/cosine")
    assert len(losses) == 6 and losses[-1] < 0.75 * losses[0] and cosines[-1] > cosines[0]
    assert {"val/loss", "val/cosine", "val/top1_agreement", "val/loss_logits", "train/loss"} <= metrics.keys()
    assert json.loads((run_dir / "results.json").read_text())["steps"] == 24
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_an_experiment_starts_from_the_weights(distilled):
    _, run_dir, _ = distilled
    path = run_dir / "backbone.safetensors"
    cfg = tiny_config("backbone=spatial_mamba_tiny", "backbone.drop_path=0", f"init.backbone={path}")
    tokenizer = train_word_tokenizer(["a red square"], min_frequency=1)
    model = build_model(cfg, tokenizer).eval()
    saved, images = load_file(path), torch.randn(2, 3, 48, 48)
    assert all(torch.equal(saved[name], value) for name, value in model.backbone.state_dict().items())
    trained = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    cfg.init.backbone = "gone.safetensors"  # a checkpoint's model asks for no starting weights
    fresh = build_model(cfg, tokenizer, fresh=False).eval().backbone
    with torch.no_grad():
        assert not torch.allclose(fresh(images), model.backbone(images))
        fresh.load_state_dict({k.removeprefix("backbone."): v for k, v in trained.items() if k.startswith("backbone.")})
        assert torch.equal(fresh(images), model.backbone(images))


def test_a_resumed_run_equals_an_unbroken_one(folder, distilled, tmp_path):
    _, unbroken, metrics = distilled
    cfg = _distill_config(folder, "trainer.max_epochs=6")
    trainers = []

    def interrupted(cfg, run_dir, *rest):
        class Interrupt(L.Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch == 3:
                    raise RuntimeError("killed")

        trainers.append(build_trainer(cfg, run_dir, *rest))
        trainers[-1].callbacks.append(Interrupt())
        return trainers[-1]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("fastcap.jobs.pretrain.build_trainer", interrupted)
        pretrain_backbone(cfg, tmp_path)
    assert (tmp_path / "backbone.safetensors").is_file()
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    assert not [k for k in torch.load(checkpoint, weights_only=True)["state_dict"] if k.startswith("teacher")]
    cfg.resume = str(checkpoint)
    resumed = pretrain_backbone(cfg, tmp_path)
    whole, mended = (load_file(path / "backbone.safetensors") for path in (unbroken, tmp_path))
    assert all(torch.equal(whole[name], mended[name]) for name in whole)
    assert {k: v for k, v in resumed.items() if "time" not in k} == {
        k: v for k, v in metrics.items() if "time" not in k
    }


def test_wrong_weights_are_named(distilled, tmp_path):
    _, run_dir, _ = distilled
    path = run_dir / "backbone.safetensors"

    def start(file, *overrides):
        build_backbone(tiny_config("backbone=spatial_mamba_tiny", *overrides, f"init.backbone={file}"))

    with pytest.raises(ConfigError, match=r"init\.backbone: .*nowhere\.safetensors: no such file"):
        start(tmp_path / "nowhere.safetensors")
    with pytest.raises(ConfigError, match=r"backbone\.safetensors: field '.*' is \(.*this backbone's"):
        start(path, "backbone.ffn_ratio=2")
    save_file(load_file(path), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"bare\.safetensors: not a FastCap backbone file .*`format`"):
        start(tmp_path / "bare.safetensors")


def test_resuming_another_job_is_refused(distilled, folder, tmp_path):
    _, run_dir, _ = distilled
    cfg = _distill_config(folder, f"resume={run_dir}/checkpoints/last.ckpt", "backbone.ffn_ratio=2")
    with pytest.raises(CheckpointError, match=r"resume cannot change backbone\.ffn_ratio: .* now 2"):
        pretrain_backbone(cfg, tmp_path)
    cfg = _config("pretrain", f"data_dir={folder}", f"resume={run_dir}/checkpoints/last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt: weights do not fit the configuration: Missing .*head"):
        pretrain_backbone(cfg, tmp_path, lambda images: {"classes": images.classes})


@pytest.mark.slow
def test_class_folders_are_learnt(folder, tmp_path):
    overrides = [f"data_dir={folder}", "images.cache=false", "images.crop_scale=0.5", "trainer.max_epochs=6"]
    cfg = _config("pretrain", *overrides)
    metrics = pretrain_backbone(cfg, tmp_path, lambda images: {"classes": images.classes})
    assert metrics["val/top1"] == 1.0 and metrics["val/top5"] == 1.0
    build_backbone(tiny_config("backbone=spatial_mamba_tiny", f"init.backbone={tmp_path}/backbone.safetensors"))


def test_the_teacher_knows_a_cat():
    pixels = np.asarray(Image.open(Path(__file__).parents[1] / "assets/cat.jpg")).astype(np.float32) / 255
    images = torch.from_numpy((pixels - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)).permute(2, 0, 1)[None]
    features, logits = Teacher(0).train()(images)
    assert features.shape == (1, 7, 7, 1280) and logits.argmax() == 285  # Egyptian cat
    assert logits.max().item() == pytest.approx(9.2052, abs=2e-3)  # the weights' own code's


def test_a_captioner_teaches_its_concepts(folder, tiny_checkpoint, tmp_path):
    teacher = f"module.teacher.checkpoint={tiny_checkpoint}"
    cfg = _distill_config(folder, teacher, "teacher_size=48", "trainer.max_epochs=6")
    pretrain_backbone(cfg, tmp_path)
    losses, cosines = _column(tmp_path, "val/loss"), _column(tmp_path, "val/cosine")
    assert losses[-1] < 0.9 * losses[0] and cosines[-1] > cosines[0] + 0.1
    module = construct(cfg.module.teacher)
    with torch.no_grad():
        features, logits = module.train(False)(torch.zeros(2, 3, 48, 48))
        own = logits.sigmoid().logit()
        assert features.shape[:3] == (2, 6, 6)
        assert module.class_loss(own, logits) < module.class_loss(own + 1, logits)
