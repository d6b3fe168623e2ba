import os
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from fastcap.data import CocoCaptions, DataError, sampler
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.sampler import EpochSampler
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.types import CaptionRecords, CaptionSource

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven"]
train_tokenizer = partial(train_word_tokenizer, min_frequency=1)


@pytest.fixture
def source(make_set):
    """22 images with one to seven captions of two words."""
    captions = [[f"{NUMBERS[j]} dog{i}" for j in range(1 + i % 7)] for i in range(22)]
    return make_set(captions, ("train", "val"))


def module(source, **settings):
    defaults = {"image_size": 8, "batch_size": 4, "captions_per_image": 3, "cache_dir": None}
    return CaptionDataModule(source, **{"tokenizer": train_tokenizer, **defaults, **settings})


def epoch(data, number):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(number)
    return list(loader)


def same(left, right):
    return all(
        all(
            torch.equal(a, b) if isinstance(a, Tensor) else a == b
            for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
        )
        for one, two in zip(left, right, strict=True)
    )


CHANGES = {"horizontal_flip": True, "crop_scale": 0.5}


def test_epochs_are_determined_by_seed_and_number(source):
    data = module(source, **CHANGES)
    first = epoch(data, 3)
    assert same(first, epoch(module(source, **CHANGES), 3))
    assert not same(first, epoch(data, 4))
    assert not same(first, epoch(module(source, seed=1, **CHANGES), 3))
    batch = first[0]
    assert len(first) == 5 and batch.images.shape == (4, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (4, 3, 20) and batch.lengths.tolist() == [[2] * 3] * 4
    assert batch.tokens.dtype == batch.lengths.dtype == batch.image_ids.dtype == torch.int64
    assert batch.references == []


def test_workers_and_the_cache_change_nothing(source):
    alone, two = (module(source, num_workers=n, cache=not n, **CHANGES) for n in (0, 2))
    loader = two.train_dataloader()
    for number in (0, 1):
        loader.batch_sampler.set_epoch(number)
        assert same(epoch(alone, number), loader)
    assert same(alone.val_dataloader(), two.val_dataloader())


def test_captions_are_drawn_without_replacement_then_cycled(source):
    data = module(source)
    drawn = {}
    for number in range(12):
        for batch in epoch(data, number):
            for image_id, rows in zip(batch.image_ids.tolist(), batch.tokens, strict=True):
                texts = tuple(data.tokenizer.decode(row.tolist()) for row in rows)
                index = image_id - 100
                assert all(text.endswith(f" dog{index}") for text in texts)
                assert len(set(texts)) == min(3, 1 + index % 7)
                drawn.setdefault(index, set()).add(texts)
    assert len({text for texts in drawn[6] for text in texts}) == 7  # all seven come up
    assert len(drawn[6]) > 3 and drawn[1] == {
        ("one dog1", "two dog1", "one dog1"),
        ("two dog1", "one dog1", "two dog1"),
    }


def test_evaluation_is_in_order_with_five_captions_and_all_references(source):
    data = module(source, eval_batch_size=5, **CHANGES)
    batches = list(data.dataloader("train"))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([batch.image_ids for batch in batches]).tolist() == list(range(100, 122))
    second = batches[0].tokens[1]
    assert [data.tokenizer.decode(row.tolist()) for row in second] == [
        f"{n} dog1" for n in ("one", "two", "one", "two", "one")
    ]
    assert batches[1].references[1] == [f"{n} dog6" for n in NUMBERS]
    records = data.records("train")
    assert np.array_equal(batches[0].images[2].permute(1, 2, 0).numpy(), records.load_image(2, 8))
    assert same(batches, data.dataloader("train"))


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("items", [1, 22, 65])
def test_shards(monkeypatch, world, items):
    def shards(training):
        found = []
        for rank in range(world):
            monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, world))
            batches = EpochSampler(items, 4, training, seed=1)
            batches.set_epoch(5)
            found.append([index.positions.tolist() for index in batches])
            assert len(batches) == len(found[-1]) or items < world * len(batches)
            assert all(index.epoch == 5 for index in batches)
        return found

    def flat(shards):
        return sorted(position for shard in shards for batch in shard for position in batch)

    assert flat(shards(training=False)) == list(range(items))  # every image once
    if items >= 2 * world:
        assert len({len(shard) for shard in shards(training=False)}) == 1  # no process waits for another
    training = shards(training=True)
    assert {len(batch) for shard in training for batch in shard} <= {4}
    assert {len(shard) for shard in training} == {items // world // 4}
    assert len(set(flat(training))) == len(flat(training))


class SidedRecords(CaptionRecords, CaptionSource):
    """Images whose pixels grow from left to right; every second one has a caption with a side in it."""

    name, image_ids = "train", range(40)
    captions = tuple(("A dog on the Left", "a dog") if i % 2 else ("bright lefty dog", "a dog") for i in range(40))

    def load_image(self, index, size):
        return np.broadcast_to((np.arange(size, dtype=np.uint8) * 10)[None, :, None], (size, size, 3))

    def fingerprint(self):
        return "sided"

    def split(self, name):
        return self


def test_flips_spare_captions_with_sides():
    data = module(SidedRecords(), horizontal_flip=True, batch_size=40)
    plain = torch.from_numpy(SidedRecords().load_image(0, 8).transpose(2, 0, 1).copy())
    flipped = torch.zeros(40)
    for number in range(50):
        (batch,) = epoch(data, number)
        for image_id, image in zip(batch.image_ids.tolist(), batch.images, strict=True):
            turned = torch.equal(image, plain.flip(-1))
            assert turned or torch.equal(image, plain)
            flipped[image_id] += turned
    assert flipped[1::2].sum() == 0
    assert 0.4 < flipped[::2].mean() / 50 < 0.6 and flipped[::2].min() > 5


@pytest.mark.parametrize("cached", [True, False])
def test_outside_training_images_may_have_another_size(source, cached):
    data = module(source, eval_image_size=12, cache=cached)
    assert epoch(data, 0)[0].images.shape[-2:] == (8, 8)
    for split in ("val", "train"):  # training images too, where they are only looked at
        images = next(iter(data.dataloader(split))).images
        assert images.shape[-2:] == (12, 12)
        assert torch.equal(images, next(iter(module(source, image_size=12).dataloader(split))).images)
    with pytest.raises(DataError, match="eval_image_size must be at least 1, found 0"):
        module(source, eval_image_size=0)


def test_captions_that_cannot_be_learned_from_are_left_out(make_set, caplog):
    source = make_set([["a dog", "!!"], ["a a a a a"], ["zebra"], ["a cat", "a a a a"]])
    source.max_skipped = 0.5
    tokenizer = train_word_tokenizer(["a dog cat"], 1)
    data = module(source, tokenizer=tokenizer, max_length=3, batch_size=2)
    (batch,) = epoch(data, 0)
    assert sorted(batch.image_ids.tolist()) == [100, 103] and batch.tokens.shape == (2, 3, 3)
    assert "2 longer than 3 tokens (first: 'a a a a a')" in caplog.text
    assert "2 without a known word (first: '!!')" in caplog.text
    assert "2 with no caption to learn from (first: image id 101)" in caplog.text
    ids = [row for b in data.dataloader("train") for row in b.tokens[:, 0].tolist()]
    assert ids[1] == tokenizer.encode("a a a") and ids[2] == [tokenizer.special.unk, 0, 0]
    with pytest.raises(DataError, match=r"1 with no caption to learn from .*: 1 of 1"):
        module(make_set([["zebra"]]), tokenizer=tokenizer).setup("fit")


@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_are_dropped_or_raised(source, tmp_path, caplog, cache):
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    ids = [i for batch in module(source, cache=cache).val_dataloader() for i in batch.image_ids.tolist()]
    assert ids == [i for i in range(100, 122) if i != 103]
    assert caplog.text.count("3.png") == 1
    with pytest.raises(DataError, match=r"3\.png"):
        list(module(CocoCaptions(tmp_path, max_skipped=0), cache=cache).val_dataloader())


def test_workers_whose_batches_do_not_fit_shared_memory_are_refused(source, monkeypatch):
    monkeypatch.setattr(sampler, "_free_shared_memory", lambda: 5000)
    with pytest.raises(DataError, match=r"/dev/shm has 0\.0 MB free, 2 workers need .* take data\.num_workers=0"):
        module(source, num_workers=2).train_dataloader()
    assert len(module(source).train_dataloader()) == 5


class Failing(torch.utils.data.Dataset[Any]):
    """Its batches end the process that builds them, or fail."""

    def __init__(self, dies):
        self.dies = dies

    def __getitems__(self, index):
        if self.dies:
            os._exit(3)
        raise DataError("x.jpg: no image")


@pytest.mark.parametrize(
    ("dies", "message"), [(True, r"data\.num_workers=1\) is gone .*/dev/shm"), (False, "^x.jpg: no")]
)
def test_a_worker_that_fails_ends_the_run_with_its_reason(dies, message):
    loader = sampler.ResumableLoader(Failing(dies), EpochSampler(4, 2, training=False), num_workers=1, batch_bytes=0)
    with pytest.raises(DataError, match=message) as error:
        list(loader)
    assert str(error.value).count("\n") == 0


class Recorder(pl.LightningModule):
    """Learns nothing; notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], int, float]] = []

    def training_step(self, batch, index):
        note = (self.current_epoch, batch.image_ids.tolist(), int(batch.tokens.sum()), float(batch.images.sum()))
        self.seen.append(note)
        return self.weight * 0

    def validation_step(self, batch, index):
        assert batch.references

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(pl.Callback):
    """Saves wherever ModelCheckpoint may: after a batch, after validation, after an epoch."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, when):
        trainer.save_checkpoint(self.folder / f"{when}{trainer.global_step}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, *_):
        self.save(trainer, "val")

    def on_train_epoch_end(self, trainer, *_):
        self.save(trainer, "epoch")


def fit(data, folder, resume=None, **settings):
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[SaveEverywhere(folder)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **{"max_epochs": 3, **settings},
    )
    trainer.fit(recorder, data, ckpt_path=resume, weights_only=False)
    return recorder.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(source, tmp_path, workers):
    settings = {**CHANGES, "num_workers": workers, "batch_size": 6}  # three batches an epoch
    whole = fit(module(source, **settings), tmp_path / "whole")
    assert len(whole) == 9 and len({str(note[1:]) for note in whole}) == 9
    points = [("batch", 4)] if workers else [("batch", 1), ("batch", 3), ("batch", 5), ("val", 3), ("epoch", 3)]
    for when, step in points:
        rest = fit(module(source, **settings), tmp_path / "rest", tmp_path / "whole" / f"{when}{step}.ckpt")
        assert rest == whole[step:], f"resumed after {when} {step}"
