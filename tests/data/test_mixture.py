"""Several caption sets as one: shares of an epoch, one vocabulary, text without images, validation apart."""

import json
from collections import Counter

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from fastcap.build import CONFIG_DIR, build_datamodule
from fastcap.data import CocoCaptions
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.mixture import CaptionMixture
from fastcap.data.scenes import Scenes
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.generation.ngrams import NGrams
from fastcap.train import train
from tests.data.conftest import tiny_content, write_scenes, write_set
from tests.tiny import QUICK


def some_set(root, size, word):
    """``size`` images with one caption each, train and val alike."""
    for split in ("train", "val"):
        write_set(root, tiny_content([[f"a {word} {word}{i}"] for i in range(size)], first_id=0), split)
    for i in range(size):
        Image.new("RGB", (8, 8), (size, i, 0)).save(root / "images" / f"{i}.png")
    return CocoCaptions(root)


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["a zebra runs", "", "  a   zebra sleeps\n"]))
    (tmp_path / "more.json").write_text(json.dumps({"captions": ["a zebra eats"]}))
    sets = {"left": some_set(tmp_path / "left", 10, "dog"), "right": some_set(tmp_path / "right", 8, "cat")}
    text = [str(tmp_path / "list.json"), str(tmp_path / "more.json")]
    return CaptionMixture(sets, {"right": 0.5}, text, text_weight=0.25)


def module(source):
    return CaptionDataModule(source, lambda c: train_word_tokenizer(c, 1), image_size=8, batch_size=2, cache_dir=None)


def test_an_epoch_shows_each_sets_share_and_goes_on_where_the_last_ended(mixture):
    loader = module(mixture).train_dataloader()
    seen = []
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)
        ids = [i for batch in loader for i in batch.image_ids.tolist()]
        assert len(ids) == 14 and sorted(i for i in ids if i < 10**12) == list(range(10))
        seen.append([i - 10**12 for i in ids if i >= 10**12])
        assert ids != sorted(ids)
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8)) and seen[:2] != seen[2:]
    (batch, *_) = loader
    colours = {int(i): image[0].max() for i, image in zip(batch.image_ids, batch.images, strict=True)}
    assert all(colour == (8 if i >= 10**12 else 10) for i, colour in colours.items())


def test_sets_are_evaluated_apart_and_together(mixture):
    data = module(mixture)
    assert data.validation_splits == ["val_left", "val_right"]
    sizes = [len([i for batch in loader for i in batch.image_ids]) for loader in data.val_dataloader()]
    assert sizes == [10, 8]
    both, right = mixture.split("val"), mixture.split("val_right")
    assert len(both.image_ids) == 18 and not both.own_ids and len(both.paths) == 18
    assert right.image_ids[3] == 10**12 + 3 and right.own_ids[10**12 + 3] == 3 and right.captions[3] == ["a cat cat3"]
    assert np.array_equal(both.load_image(13, 8), right.load_image(3, 8))
    assert both.fingerprint() != right.fingerprint()


def test_text_joins_vocabulary_and_ngrams_with_its_weight(mixture):
    data = module(mixture)
    words = data.tokenizer
    text, weight = data.text_tokens()
    assert [words.decode(ids) for ids in text] == ["a zebra runs", "a zebra sleeps", "a zebra eats"] and weight == 0.25
    captions = [ids for rows in data.reference_tokens().values() for ids in rows]
    weighed, repeated, plain = (NGrams(words.vocab_size) for _ in range(3))
    weighed.count(captions * 4, text, 4.0)
    repeated.count(captions * 4 + text * 4)
    plain.count(captions)
    for name, table in repeated.named_buffers():
        assert table.equal(getattr(weighed, name)), name
    assert len(weighed.bigrams) > len(plain.bigrams)


def test_training_on_photographs_validates_each_set(tmp_path):
    roots = {}
    for name, sizes in (("flickr8k", (12, 4)), ("coco", (8, 6))):
        roots[name] = tmp_path / name
        for records in map(Scenes(*sizes, seed=len(name)).split, ("train", "val")):
            write_scenes(records, roots[name], 16)
    sources = [f"data.source.sets.{name}.root={root}" for name, root in roots.items()]
    settings = [setting for setting in QUICK if not setting.startswith(("data.source", "callbacks.samples"))]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=["data=photographs", *settings, *sources, "data.cache_dir=null"])
    assert Counter(type(each).__name__ for each in build_datamodule(cfg).source.sets.values()) == {"CocoCaptions": 2}
    metrics = train(cfg, tmp_path / "run")
    for name in ("cider", "loss", "bleu4"):
        each = [metrics[f"val_{part}/{name}"] for part in roots]
        assert metrics[f"val/{name}"] == pytest.approx(sum(each) / 2, rel=1e-4), name
    rows = json.loads((tmp_path / "run/captions.json").read_text())
    assert len(rows) == 10 and len({row["image_id"] for row in rows}) == 10
