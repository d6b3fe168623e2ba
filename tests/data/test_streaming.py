"""Shards hold the same samples as the folder they were written from, in any order, on any number of processes."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcap.data import CocoCaptions, DataError, sampler
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.sampler import ShardSampler
from fastcap.data.streaming import StreamingCaptions
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.jobs import shards
from fastcap.types import CaptionBatch

# litdata leaves the shards that it has fetched open until the process ends.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore:This DataLoader will create")
pytest.importorskip("litdata", reason="shards need the extra `streaming`")

CHANGES = {"horizontal_flip": True, "crop_scale": 0.5}
SIZE = 300  # px; 270 kB an image, so that shards of 1 MB hold three


def module(source: Any, **settings: Any) -> CaptionDataModule:
    return CaptionDataModule(
        source,
        partial(train_word_tokenizer, min_frequency=1),
        **{"image_size": SIZE, "batch_size": 4, "captions_per_image": 5, "cache": False, **settings},
    )


@pytest.fixture
def root(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> Path:
    """22 images, one of them broken, one without captions, in two splits."""
    captions = [[f"{j} dog{i}" for j in range(1 + i % 6)] if i != 5 else [] for i in range(22)]
    make_set(captions, ("train", "val"))
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    return tmp_path


def streamed(root: Path, **settings: Any) -> StreamingCaptions:
    return StreamingCaptions(root, **{"shards": str(root / "shards"), "size": SIZE, "shard_mb": 1, **settings})


def batches(data: CaptionDataModule, epoch: int = 0) -> list[CaptionBatch]:
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def same(left: list[CaptionBatch], right: list[CaptionBatch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for one, two in zip(left, right, strict=True)
        for a, b in zip(vars(one).values(), vars(two).values(), strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches_as_the_cached_folder(root: Path, workers: int) -> None:
    folder = module(CocoCaptions(root), cache=True, cache_dir=None, **CHANGES)
    stream = module(streamed(root), num_workers=workers, **CHANGES)
    for epoch in (0, 1):
        expected, found = batches(folder, epoch), batches(stream, epoch)
        assert same(expected, found) and len(found) == 5
        assert found[0].images.shape == (4, 3, SIZE, SIZE) and found[0].tokens.shape == (4, 5, 20)
    assert same(list(folder.val_dataloader()), list(stream.val_dataloader()))
    limit = {"max_images": 7}
    assert same(
        list(module(CocoCaptions(root, **limit), cache=True, cache_dir=None).val_dataloader()),
        list(module(streamed(root, **limit)).val_dataloader()),
    )


def test_written_once_and_without_the_images_afterwards(root: Path) -> None:
    first = list(module(streamed(root)).val_dataloader())
    stamp = (root / "shards" / f"val-{SIZE}px" / "fastcap.json").stat().st_mtime_ns
    for path in (root / "images").iterdir():
        path.unlink()
    (root / "images").rmdir()
    assert same(first, list(module(streamed(root)).val_dataloader()))
    assert (root / "shards" / f"val-{SIZE}px" / "fastcap.json").stat().st_mtime_ns == stamp
    assert not list((root / "shards").glob(".*px-*"))
    with pytest.raises(DataError, match="image folder"):
        streamed(root, quality=95).split("val")


def test_read_like_an_object_store(root: Path) -> None:
    streamed(root).write("val")
    remote = streamed(root, shards=f"local:{root / 'shards'}", cache_dir=root / "kept")
    expected = list(module(streamed(root)).val_dataloader())
    assert same(expected, list(module(remote).val_dataloader()))
    assert len(list((root / "kept").rglob("*.bin"))) > 5  # fetched whole
    again = streamed(root, shards=f"local:{root / 'shards'}", cache_dir=root / "kept")
    assert same(expected, list(module(again, num_workers=2).val_dataloader()))
    with pytest.raises(DataError, match=r"nowhere/train-300px/fastcap\.json: cannot be fetched"):
        streamed(root, shards=f"local:{root / 'nowhere'}").split("train")


def test_jpeg_inside(root: Path) -> None:
    exact, near = streamed(root).split("val"), streamed(root, quality=98).split("val")
    error = np.abs(exact.load_image(0, SIZE).astype(int) - near.load_image(0, SIZE)).mean()
    assert 0 < error < 3
    size = {q: sum(p.stat().st_size for p in (root / "shards").glob(f"val-{q}/*.bin")) for q in ("300px", "300px-q98")}
    assert size["300px-q98"] < size["300px"] / 2


@pytest.mark.parametrize("together", [None, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_resumed_in_mid_epoch_equals_unbroken(
    root: Path, monkeypatch: pytest.MonkeyPatch, together: int | None, world: int
) -> None:
    source = streamed(root, shuffle_shards=together)
    for rank in range(world):
        monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, world))
        loader = module(source, **CHANGES).train_dataloader()
        loader.batch_sampler.set_epoch(2)  # type: ignore[union-attr]
        whole = list(loader)
        for seen in range(1, len(whole)):
            started = iter(loader)
            for _ in range(seen):
                next(started)
            state = json.loads(json.dumps(loader.state_dict()))
            fresh = module(source, **CHANGES).train_dataloader()
            fresh.batch_sampler.set_epoch(2)  # type: ignore[union-attr]
            fresh.load_state_dict(state)
            assert same(list(fresh), whole[seen:]) and len(whole) > 1


@pytest.mark.parametrize("world", [2, 3])
def test_validation_meets_every_image_once(root: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    data = module(streamed(root))
    shares = []
    for rank in range(world):
        monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, world))
        shares.append([batch.image_ids.tolist() for batch in data.val_dataloader()])
    assert len({len(share) for share in shares}) == 1  # no process waits for another
    ids = sorted(i for share in shares for batch in share for i in batch)
    assert ids == [i for i in range(100, 122) if i not in (103, 105)]


def test_training_order_by_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    shard_of = np.repeat(np.arange(20), 10)

    def shares(epoch: int, world: int, seed: int = 0) -> list[list[int]]:
        found = []
        for rank in range(world):
            monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, world))
            order = ShardSampler(shard_of, 4, 5, seed)
            order.set_epoch(epoch)
            found.append([i for index in order for i in index.positions.tolist()])
        return found

    (alone,) = shares(0, 1)
    assert sorted(alone) == list(range(200)) and shares(0, 1) == [alone] != shares(1, 1) != shares(0, 1, seed=1)
    for low in range(0, 200, 40):  # four shards at a time, well mixed
        window = [int(shard_of[i]) for i in alone[low : low + 40]]
        assert len(set(window)) == 4 and len(set(window[:10])) > 1
    two = shares(0, 2)
    assert sorted(two[0] + two[1]) == list(range(200))
    assert all(len({int(shard_of[i]) for i in share}) <= 14 for share in two)  # not all twenty
    assert two[0] + two[1] == alone


def test_damage_is_named(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    root = tmp_path
    make_set([["a dog"]] * 9, ("val", "train"))
    streamed(root).write("val")
    place = root / "shards" / f"val-{SIZE}px"
    about = json.loads((place / "fastcap.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match):
            list(module(streamed(root, on_bad="raise")).val_dataloader())

    for change, match in [
        ({"version": 9}, "version is 9"),
        ({"size": 8}, "size 8 and quality None are not its name's"),
        ({"shards": about["shards"][1:]}, "do not add up"),
        ({"bad": None}, "not as it was written"),
        ({"image_ids": {}}, "not as it was written"),
    ]:
        (place / "fastcap.json").write_text(json.dumps(about | change))
        refused(match)
    (place / "fastcap.json").write_text("[" * 100_000)
    refused("not as it was written")
    ids = [about["image_ids"][0], about["image_ids"][2], about["image_ids"][1], *about["image_ids"][3:]]
    (place / "fastcap.json").write_text(json.dumps(about | {"image_ids": ids}))
    refused("is image id")
    (place / "fastcap.json").write_text(json.dumps(about))
    shard = sorted(place.glob("*.bin"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    refused("cut short")
    shard.write_bytes(b"\xff" * len(whole))
    refused("cannot be read from its shard|bytes in its shard|is image id")
    shard.unlink()
    refused("is missing")


@pytest.mark.parametrize("settings", [{"quality": 0}, {"shard_mb": 0}, {"shuffle_shards": 0}, {"size": 0}])
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        streamed(tmp_path, **settings)


def test_skips_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    streamed(root).write("val")
    path = root / "annotations" / "captions_val.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 999})
    content["annotations"].append({"image_id": 999, "caption": "new"})
    path.write_text(json.dumps(content))
    records = streamed(root).split("val")
    assert 999 not in records.image_ids and "1 images that no shard holds" in caplog.text
    assert "1 images without a caption" in caplog.text
    with pytest.raises(DataError, match="no shard"):
        content["annotations"] = content["annotations"][-1:]
        content["images"] = content["images"][-1:]
        path.write_text(json.dumps(content))
        streamed(root).split("val")
    assert records.fingerprint() == pickle.loads(pickle.dumps(records)).fingerprint()
    with pytest.raises(DataError, match="300 px, asked for 8"):
        records.load_image(0, 8)


def test_without_the_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(DataError, match=r"\[streaming\]"):
        streamed(root).split("val")


def test_nothing_decodes(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    make_set([["a"]])
    (tmp_path / "images" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image to write into shards .*0\.png"):
        streamed(tmp_path).split("train")
    assert not list((tmp_path / "shards").glob("*px*/"))


def test_command_writes_shards(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"data.source.root={root}", f"data.source.shards={root / 'shards'}", "data.image_size=16"]
    overrides += ["data.source.annotations={train: annotations/captions_train.json}"]
    for _ in range(2):  # again: it is there
        shards.main([*overrides, "--splits", "train"])
        assert "21 images, 1 cannot be decoded, 1 shards" in capsys.readouterr().out
    for wrong, message in [
        ("data=scenes", "keeps no shards"),
        ("data.source.shards=s3://nowhere/x", "written into a local folder"),
        ("data.source.shard_gb=1", "shard_gb"),
    ]:
        with pytest.raises(SystemExit) as stop:
            shards.main([*overrides[:1], *overrides[2:], wrong] if wrong != "data=scenes" else [wrong])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_flickr8k(flickr8k: Path, tmp_path: Path) -> None:
    annotations = {"extra": "annotations/captions_extra.json", "train": "annotations/captions_extra.json"}
    source = StreamingCaptions(flickr8k, str(tmp_path), 128, annotations=annotations)
    folder = module(CocoCaptions(flickr8k, annotations=annotations), image_size=128, **CHANGES)
    stream = module(source, image_size=128, **CHANGES)
    assert same(list(folder.dataloader("extra")), list(stream.dataloader("extra")))
    assert same(batches(folder), batches(stream))
