"""The reference that others agree with."""

import json

import pytest

from fastcap.jobs import fetch
from fastcap.metrics.consensus import consensus

DOG = ["it barks", "a dog runs on grass", "a brown dog runs on the grass", "my holiday"]
MAN = ["a man rides a bike", "somebody", "a man is riding a bike"]


def test_the_one_that_others_agree_with_is_chosen_whatever_the_order():
    others = [["a cat", "the cat"], ["two boats on the sea", "boats"], ["one car", "red car"]]
    for captions in (DOG, DOG[::-1]):
        chosen = consensus([captions, MAN, *others])
        assert captions[chosen[0]] in DOG[1:3] and MAN[chosen[1]] != "somebody"


def test_it_equals_the_score_against_the_others_alone():
    from fastcap.metrics import CiderReward

    images = [DOG, MAN, ["a cat on a mat", "the cat on the mat sleeps", "cat"]]
    numbers: dict[str, int] = {}
    ids = [[[numbers.setdefault(word, len(numbers)) for word in text.split()] for text in texts] for texts in images]
    whole = CiderReward(dict(enumerate(ids)))
    for image, texts in enumerate(ids):
        alone = []
        for place, tokens in enumerate(texts):
            reward = CiderReward({image: texts[:place] + texts[place + 1 :]})
            reward._idf, reward._log_images = whole._idf, whole._log_images
            reward._references[image] = [
                found for at, found in enumerate(whole._references[image]) if at != place
            ]  # weighed by all images' document frequencies
            alone += reward([image], [tokens])
        assert consensus(images)[image] == max(range(len(texts)), key=alone.__getitem__)


def test_equals_and_single_captions():
    assert consensus([["same", "same"], ["only one"]]) == [0, 0]


def test_the_command_writes_a_result_file(tmp_path, capsys):
    captions = [(7, text) for text in DOG] + [(8, text) for text in MAN]
    source = tmp_path / "captions.json"
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 8, 9)],
        "annotations": [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(captions)],
    }
    source.write_text(json.dumps(content))
    fetch.main(["consensus", str(source), "--out", str(tmp_path / "out.json")])
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["image_id"] for row in rows] == [7, 8]
    assert rows[0]["caption"] in DOG and rows[1]["caption"] in MAN
    assert "2 captions" in capsys.readouterr().out


def test_a_file_without_captions_is_refused(tmp_path, capsys):
    source = tmp_path / "captions.json"
    source.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}))
    with pytest.raises(SystemExit):
        fetch.main(["consensus", str(source), "--out", str(tmp_path / "out.json")])
    assert str(source) in capsys.readouterr().err and not (tmp_path / "out.json").exists()
