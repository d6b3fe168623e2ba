"""Karpathy's format into COCO's."""

import json

import pytest

from fastcap.data import DataError
from fastcap.data.download import coco
from fastcap.data.download.coco import convert


def _entry(number, split, **more):
    sentences = [{"raw": f"caption {number} {n}", "sentid": 5 * number + n, "tokens": []} for n in range(5)]
    return {"imgid": number, "split": split, "filename": f"{number}.jpg", "sentences": sentences, **more}


def _write(path, entries):
    path.write_text(json.dumps({"images": entries, "dataset": "flickr8k"}))
    return path


FLICKR = [_entry(0, "train"), _entry(1, "train"), _entry(2, "val"), _entry(3, "test")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(coco.COUNTS, "coco", {"train": 3, "val": 1, "test": 1})


def test_ids_folders_and_restval(tmp_path):
    entries = [*FLICKR, _entry(4, "restval", filepath="val2014", cocoid=77)]
    convert(_write(tmp_path / "d.json", entries), tmp_path)
    content = json.loads((tmp_path / "captions_karpathy_train.json").read_text())
    assert [image["id"] for image in content["images"]] == [0, 1, 77]
    assert content["images"][-1]["file_name"] == "val2014/4.jpg"
    assert content["annotations"][9] == {"id": 9, "image_id": 1, "caption": "caption 1 4"}
    with pytest.raises(DataError, match=r"d\.json: .*'train': 2.* images, must be .*'train': 3"):
        convert(_write(tmp_path / "d.json", FLICKR), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, r"images\[1\]\.split must be .* found 'dev'"),
        ({"imgid": "1"}, r"images\[1\]\.imgid must be an integer, found str '1'"),
        ({"imgid": 0}, r"images\[1\]: image id 0 is a duplicate"),
        ({"sentences": []}, r"images\[1\]\.sentences must be a list"),
        ({"sentences": [{"sentid": 1}]}, r"images\[1\]\.sentences\[0\]\.raw must be a string, found nothing"),
    ],
)
def test_a_bad_field_is_named(tmp_path, change, message):
    entries = [FLICKR[0], {**FLICKR[1], **change}, *FLICKR[2:]]
    with pytest.raises(DataError, match=rf"d\.json: {message}"):
        convert(_write(tmp_path / "d.json", entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()
