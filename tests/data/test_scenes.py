"""The drawn scenes: facts, pictures and captions agree with one another."""

import hashlib
import itertools

import numpy as np
import pytest

from fastcap.data.scenes import SceneRecords, Scenes
from fastcap.data.scenes.render import PAINT
from fastcap.data.scenes.world import (
    COLOURS,
    Group,
    Scene,
)

SALAD = [*SHAPE_OF, *SIZE_OF, *COUNT_OF, *COLOURS, *GROUND_OF, *"left of top corner each between inside and".split()]
# Of drawn scenes and their captions, the same on every machine.
GOLDEN = "04801630903ed545"


@pytest.fixture(scope="module")
def val():
    return Scenes(num_val=300).split("val")


def digest(records):
    text = repr((records.facts, records.captions, records.oracle_captions))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def paint_mask(pixels, colour):
    return np.abs(pixels.astype(int) - PAINT[colour]).max(axis=-1) <= 24


def test_same_everywhere():
    assert digest(Scenes(num_val=50).split("val")) == GOLDEN


def test_splits_share_no_facts_and_no_ids():
    splits = [Scenes(2000, 500, 500).split(name) for name in ("train", "val", "test")]
    for first, second in itertools.combinations(splits, 2):
        assert not {scene.signature for scene in first.facts} & {scene.signature for scene in second.facts}
        assert not set(first.image_ids) & set(second.image_ids)


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


def test_parser_inverts_the_grammar(val):
    for captions in (*zip(*val.captions, strict=True), val.oracle_captions.values()):
        values = val.score(dict(zip(val.image_ids, captions, strict=True)))
        assert all(value == 100 for value in values.values()), values


def test_parser_reads_every_claim():
    claims = parse_caption("There are two big red discs to the left of an orange box, on plain grey.")
    assert [(g.shape, g.colour, g.size, g.count) for g in claims.groups] == [
        ("circle", "red", "large", 2),
        ("square", "orange", None, 1),
    ]
    assert [(r.subject, r.relation, r.objects) for r in claims.relations] == [(0, "left of", (1,))]
    assert claims.backgrounds == ("grey",) and claims.positions == ()
    claims = parse_caption("at the upper left there is a heart on a sandy beach")
    assert [(p.group, p.position) for p in claims.positions] == [(0, "top left")] and claims.backgrounds == ("sand",)
    assert parse_caption("four hearts one in each corner").positions[0].position == "corners"
    assert parse_caption("a ring between a square and a heart").relations[0].objects == (1, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SALAD)))
def test_parser_survives_word_salad(words):
    claims = parse_caption(" ".join(words))
    assert len(claims.groups) == sum(word in SHAPE_OF for word in words)
    records = SceneRecords("val", 1)
    assert all(0 <= value <= 100 for value in records.score({records.image_ids[0]: " ".join(words)}).values())


def test_wrong_captions_score_low(val):
    shifted = [captions[0] for captions in val.captions[1:] + val.captions[:1]]
    values = val.score(dict(zip(val.image_ids, shifted, strict=True)))
    assert all(value < 35 for value in values.values()), values
    assert values["colour_accuracy"] < 10 and values["relation_accuracy"] < 10


def test_each_claim_is_checked():
    heart = Group("heart", "red", "small", ((0.25, 0.5),), 0.16)
    ring = Group("ring", "blue", "large", ((0.75, 0.5),), 0.28)
    scenes = {7: Scene("sky", (heart, ring), "row")}

    def score(caption):
        return scene_accuracy(scenes, {7: caption})

    assert score("a small red heart to the left of a large blue ring in the sky")["relation_accuracy"] == 100
    swapped = score("a small blue heart to the right of two large red rings at night")
    assert swapped["object_accuracy"] == swapped["size_accuracy"] == swapped["object_recall"] == 100
    assert swapped["colour_accuracy"] == swapped["relation_accuracy"] == swapped["background_accuracy"] == 0
    assert swapped["count_accuracy"] == 50
    assert score("in the sky")["object_accuracy"] == 0, "naming nothing is no way to be right"
    repeated = score("a red heart and a red heart")
    assert repeated["object_accuracy"] == repeated["colour_accuracy"] == repeated["object_recall"] == 50
    assert score("a red heart to the left of")["relation_accuracy"] == 0
    assert score("a red heart on the left")["position_accuracy"] == 100
    assert score("a red heart on the right")["position_accuracy"] == 0
