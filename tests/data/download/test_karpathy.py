"""Karpathy's format into COCO's."""

import json

import pytest

from fastcap.data import CocoCaptions, DataError
from fastcap.data.download.karpathy import convert
from fastcap.jobs import fetch


def _entry(number, split, **more):
    sentences = [{"raw": f"caption {number} {n}", "sentid": 5 * number + n, "tokens": []} for n in range(5)]
    return {"imgid": number, "split": split, "filename": f"{number}.jpg", "sentences": sentences, **more}


def _write(path, entries):
    path.write_text(json.dumps({"images": entries, "dataset": "flickr8k"}))
    return path


FLICKR = [_entry(0, "train"), _entry(1, "train"), _entry(2, "val"), _entry(3, "test")]


def test_flickr_without_folders_and_coco_ids(tmp_path):
    assert convert(_write(tmp_path / "dataset.json", FLICKR), tmp_path) == {"train": 2, "val": 1, "test": 1}
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / f"images/{number}.jpg").write_bytes(b"")
    files = {name: f"captions_karpathy_{name}.json" for name in ("train", "val", "test")}
    records = CocoCaptions(tmp_path, annotations=files, max_skipped=0).split("train")
    assert list(records.image_ids) == [0, 1] and records.captions[1][4] == "caption 1 4"


def test_restval_joins_train_or_stays_out(tmp_path):
    source = _write(tmp_path / "d.json", [*FLICKR, _entry(4, "restval", filepath="val2014", cocoid=77)])
    assert convert(source, tmp_path)["train"] == 3
    images = json.loads((tmp_path / "captions_karpathy_train.json").read_text())["images"]
    assert images[-1] == {"id": 77, "file_name": "val2014/4.jpg"}
    assert convert(source, tmp_path, restval=False)["train"] == 2


def test_the_command_checks_known_sets(tmp_path, capsys):
    source = _write(tmp_path / "dataset_flickr8k.json", FLICKR)
    with pytest.raises(SystemExit) as stop:
        fetch.main(["karpathy", str(source)])
    assert stop.value.code == 2 and "dataset_flickr8k.json" in capsys.readouterr().err
    fetch.main(["karpathy", str(source.rename(tmp_path / "dataset_mine.json")), "--out", str(tmp_path / "out")])
    assert "train        2 images" in capsys.readouterr().out and len(list((tmp_path / "out").iterdir())) == 3


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
