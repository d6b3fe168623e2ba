"""Whole runs, tiny: they learn, they repeat, they resume."""

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from fastcap.build import build_datamodule, build_module, build_trainer, load_checkpoint
from fastcap.eval import evaluate
from fastcap.generation.ngrams import NGrams
from fastcap.train import train
from fastcap.training.checkpoints import CheckpointError
from tests.tiny import TINY, tiny_config

GOLDEN = Path(__file__).parent / "assets/golden_losses.json"


def _weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: (configuration, folder, metrics)."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_config("metrics.tokenizer=simple", "trainer.log_every_n_steps=2", base=TINY)
    return cfg, folder, train(cfg, folder)


def test_a_run_leaves_what_it_promises(run):
    _, folder, metrics = run
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "results.json", "captions.json"):
        assert (folder / name).is_file(), name
    assert sorted(p.name for p in (folder / "samples").iterdir())[0] == "epoch_000.png"
    promised = {"cider", "cider_oracle", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "loss", "object_accuracy"}
    assert promised <= {name.removeprefix("val/") for name in metrics}
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/loss_token", "train/loss_length", "train/loss_alignment", "val/cider"} <= set(header)
    assert {"moe/load_e0", "moe/load_e1", "dlag/mae", "time/images_per_s"} <= set(header)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows if row["val/cider"]] == list("01"), "one row for each validation of training"
    rows = json.loads((folder / "captions.json").read_text())
    assert len(rows) == 16 and all(len(row["references"]) == 5 for row in rows)


def test_eval_repeats_the_last_validation_exactly(run, tmp_path):
    _, folder, metrics = run
    again = evaluate(folder / "checkpoints/best.ckpt", "val", {}, tmp_path)
    for name, value in metrics.items():
        if name.startswith("val/"):
            assert again[name] == value, name


def test_eval_of_another_split_and_refinement(run, tmp_path):
    _, folder, _ = run
    metrics = evaluate(folder / "checkpoints/best.ckpt", "test", {"refinement.num_steps": 1}, tmp_path)
    assert "test/cider" in metrics
    assert len(json.loads((tmp_path / "captions.json").read_text())) == 8


def test_checkpoint_rebuilds_the_model_by_itself(run):
    cfg, folder, _ = run
    loaded = load_checkpoint(folder / "checkpoints/last.ckpt")
    assert loaded.config == OmegaConf.to_container(cfg, resolve=True)
    for name, value in _weights(folder / "checkpoints/last.ckpt").items():
        assert torch.equal(loaded.model.state_dict()[name.removeprefix("model.")], value)


def test_a_checkpoint_holds_the_counts_of_its_training_captions(run, tmp_path):
    cfg, folder, _ = run
    loaded = load_checkpoint(folder / "checkpoints/last.ckpt")
    captions = build_datamodule(cfg).reference_tokens().values()
    expected = NGrams(loaded.tokenizer.vocab_size)
    expected.count(ids for texts in captions for ids in texts)
    assert loaded.model.refinement.ngram_weights.bigram > 0
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.model.ngrams.state_dict()[name], value)
    # One without counts serves without them, and says so where they are asked for.
    without = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    empty = NGrams(loaded.tokenizer.vocab_size).state_dict()
    without["state_dict"] |= {f"model.ngrams.{name}": value for name, value in empty.items()}
    torch.save(without, tmp_path / "without.ckpt")
    with pytest.raises(CheckpointError, match=r"without\.ckpt: holds no counts of n-grams: it needs .*bigram=0"):
        load_checkpoint(tmp_path / "without.ckpt")
    apart = {"refinement.ngram_weights.bigram": 0}
    assert not load_checkpoint(tmp_path / "without.ckpt", apart).model.ngrams.counted


def test_a_resumed_run_equals_an_unbroken_one(run, tmp_path):
    _, folder, metrics = run

    class Interrupt(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    cfg = tiny_config()
    L.seed_everything(cfg.seed)
    datamodule = build_datamodule(cfg)
    module = build_module(cfg, datamodule)
    trainer = build_trainer(cfg, tmp_path / "broken")
    trainer.callbacks.append(Interrupt())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(module, datamodule=datamodule)
    cfg = tiny_config(f"resume={tmp_path}/broken/checkpoints/last.ckpt")
    resumed = train(cfg, tmp_path / "broken")
    whole, mended = (_weights(p / "checkpoints/last.ckpt") for p in (folder, tmp_path / "broken"))
    assert not {
        n: (whole[n].double() - mended[n].double()).abs().max().item()
        for n in whole
        if not torch.equal(whole[n], mended[n])
    }
    assert {k: v for k, v in resumed.items() if k.startswith("val/")} == {
        k: v for k, v in metrics.items() if k.startswith("val/")
    }


@pytest.mark.parametrize(
    "overrides",
    [[], pytest.param(["decoder=autoregressive_mini", "refinement=greedy"], marks=pytest.mark.slow)],
    ids=["icmr", "baseline"],
)
def test_one_batch_is_learnt_by_heart(overrides):
    """A right system overfits: generation then gives the very captions back."""
    torch.manual_seed(0)
    cfg = tiny_config(
        *overrides,
        "data.source.num_train=8",
        "data.captions_per_image=1",
        "decoder.dim=64",
        "objective.label_smoothing=0",
        "decoder.num_experts=1",
        "optim.weight_decay=0",
    )
    datamodule = build_datamodule(cfg)
    datamodule.setup("fit")
    module = build_module(cfg, datamodule)
    batch = next(iter(datamodule.train_dataloader()))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    module.train()
    for step in range(160):
        optimizer.zero_grad()
        losses, _ = module.losses(batch, torch.Generator().manual_seed(step))
        losses["total"].backward()
        optimizer.step()
    captions = module.texts(module.eval().model(batch.images))
    rows = zip(batch.tokens[:, 0].tolist(), batch.lengths[:, 0].tolist(), strict=True)
    assert captions == [module.decode_text(ids[:length]) for ids, length in rows]


@pytest.mark.slow
def test_bf16_trains_with_the_default_optimiser(tmp_path):
    metrics = train(tiny_config("trainer.precision=bf16-mixed", "trainer.max_epochs=1"), tmp_path)
    assert metrics["val/loss"] > 0


def test_the_autoregressive_baseline_trains_and_evaluates(tmp_path):
    overrides = ["decoder=autoregressive_mini", "trainer.max_epochs=1"]
    metrics = train(tiny_config(*overrides, "refinement=greedy"), tmp_path)
    again = evaluate(tmp_path / "checkpoints/best.ckpt", "val", {}, tmp_path / "greedy")
    assert {k: again[k] for k in metrics if k.startswith("val/")} == {
        k: v for k, v in metrics.items() if k.startswith("val/")
    }
    beams = evaluate(tmp_path / "checkpoints/best.ckpt", "val", {"refinement.num_beams": 3}, tmp_path / "beam")
    assert beams["val/loss"] == again["val/loss"]


def test_golden_losses():
    """Losses of the first steps of a fixed run: a refactor must not move them."""
    cfg = tiny_config()
    L.seed_everything(cfg.seed)
    datamodule = build_datamodule(cfg)
    datamodule.setup("fit")
    module = build_module(cfg, datamodule).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for step, batch in enumerate(datamodule.train_dataloader()):
        torch.manual_seed(step)
        values, _ = module.losses(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        values["total"].backward()
        optimizer.step()
        losses.append(round(values["total"].item(), 4))
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), abs=2e-3)
