"""The drawn scenes: facts, pictures and captions agree with one another."""

import hashlib
import itertools

import numpy as np
import pytest

from fastcap.data.scenes import Scenes
from fastcap.data.scenes.render import PAINT

# Of drawn scenes and their captions, the same on every machine.
GOLDEN = "04801630903ed545"


@pytest.fixture(scope="module")
def val():
    return Scenes(num_val=300).split("val")


def digest(records):
    text = repr((records.facts, records.captions, records.oracle_captions))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def box(group):
    xs, ys = zip(*group.centres, strict=True)
    radius = group.diameter / 2
    return min(xs) - radius, min(ys) - radius, max(xs) + radius, max(ys) + radius


def paint_mask(pixels, colour):
    return np.abs(pixels.astype(int) - PAINT[colour]).max(axis=-1) <= 24


def test_same_everywhere():
    assert digest(Scenes(num_val=50).split("val")) == GOLDEN


def test_splits_share_no_facts_and_no_ids():
    splits = [Scenes(2000, 500, 500).split(name) for name in ("train", "val", "test")]
    for first, second in itertools.combinations(splits, 2):
        assert not {scene.signature for scene in first.facts} & {scene.signature for scene in second.facts}
        assert not set(first.image_ids) & set(second.image_ids)


def test_groups_follow_their_layout_and_stay_inside(val):
    for scene in val.facts:
        for group in scene.groups:
            assert min(box(group)) > 0 and max(box(group)) < 1
        if scene.layout in ("row", "column"):
            side = 0 if scene.layout == "row" else 1
            for first, second in itertools.pairwise(scene.groups):
                assert box(first)[side + 2] < box(second)[side], "captions say left of, or above"


def test_pictures_agree_with_facts(val):
    """Paint of each colour is at every object of its group and next to nowhere else."""
    for index, scene in enumerate(val.facts):
        pixels = val.load_image(index, 64)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        for group in scene.groups:
            ys, xs = np.nonzero(paint_mask(pixels, group.colour))
            left, top, right, bottom = (side * 64 for side in box(group))
            at_home = (xs >= left - 1) & (xs <= right) & (ys >= top - 1) & (ys <= bottom)
            assert at_home.mean() > 0.9, "rims of other colours may pass for this one, hardly more"
            for x, y in group.centres:
                away = np.maximum(np.abs(xs + 0.5 - x * 64), np.abs(ys + 0.5 - y * 64))
                assert (away <= group.diameter * 32).sum() >= 10, (scene.signature, group.shape)
            if group.shape != "ring":
                x, y = (int(value * 64) for value in group.centres[0])
                assert paint_mask(pixels[y, x], group.colour), (scene.signature, pixels[y, x])


def test_objects_that_are_named_must_be_there(val):
    assert val.score(dict(zip(val.image_ids, (captions[0] for captions in val.captions), strict=True))) == {
        "object_accuracy": 100.0
    }
    (first, scene), absent = (val.image_ids[0], val.facts[0]), "heart cross ring circle square triangle".split()
    absent = [shape for shape in absent if shape not in {group.shape for group in scene.groups}]
    present = scene.groups[0].shape
    assert val.score({first: f"A {present} and a {absent[0]}."})["object_accuracy"] == 50
    assert val.score({first: "nothing"})["object_accuracy"] == 0
