import json
import os
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fastcap.data import CocoCaptions, DataError
from fastcap.data.coco import normalise_caption

IMAGES = [{"id": 1, "file_name": "0.png"}]
CAPTIONS = [{"id": 1, "image_id": 1, "caption": "a dog"}]


def of(images=IMAGES, annotations=()):
    return {"images": images, "annotations": list(annotations)}


MALFORMED = {
    "an array": ([], "must hold a JSON object"),
    "no images": ({"annotations": []}, "'images' must be a list, found nothing"),
    "images a dict": (of({}), "'images' must be a list, found dict"),
    "image a string": (of(["0.png"]), "images[0] must be an object"),
    "image id a bool": (of([{"id": True, "file_name": "0.png"}]), "images[0].id"),
    "image id too big": (of([{"id": 2**63, "file_name": "0.png"}]), "images[0].id"),
    "no file name": (of([{"id": 1}]), "images[0].file_name must be a string, found nothing"),
    "file name of a drive": (of([{"id": 1, "file_name": "C:\\x.png"}]), "images[0].file_name"),
    "file name above": (of([{"id": 1, "file_name": "..\\x.png"}]), "images[0].file_name"),
    "duplicate id": (of(IMAGES * 2), "images[1].id 1 is a duplicate"),
    "image_id a float": (of(annotations=[{"image_id": 1.0, "caption": "a"}]), "[0].image_id"),
    "caption null": (of(annotations=[{"image_id": 1, "caption": None}]), "annotations[0].caption"),
    "unknown image": (of(annotations=[{"image_id": 9, "caption": "a"}]), "annotations[0].image_id 9"),
    "no images at all": (of([]), "images is empty"),
}
UNREADABLE = ["", "{", "[" * 100_000, '{"images": [], "annot', b'{"images": "\xff\xfe"}']


@pytest.mark.parametrize("case", [*MALFORMED, *UNREADABLE], ids=lambda case: str(case[:20]) or "empty")
def test_malformed_content_names_file_and_field(make_set, tmp_path, case):
    content, expected = MALFORMED.get(case, (case, "annotation file is not readable JSON"))
    source = make_set([["a dog"]])
    content = json.dumps(content) if case in MALFORMED else content
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / "annotations" / "captions_train.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"captions_train\.json: .*{re.escape(expected)}"):
        source.split("train")


def test_missing_places(make_set, tmp_path):
    make_set([["a dog"]])
    with pytest.raises(DataError, match=r"nowhere: data folder \(root\) is missing"):
        CocoCaptions(tmp_path / "nowhere").split("train")
    with pytest.raises(DataError, match=r"photos: image folder \(images\) is missing"):
        CocoCaptions(tmp_path, images="photos").split("train")
    with pytest.raises(DataError, match=r"captions_val\.json: annotation file is missing"):
        CocoCaptions(tmp_path).split("val")
    with pytest.raises(DataError, match=r"no split 'valid'; choose from test, train, val"):
        CocoCaptions(tmp_path).split("valid")


def test_skips_are_counted_reported_and_refused_above_a_share(make_set, tmp_path, caplog):
    make_set([["a dog", " \u2028"], ["\r\n"], ["a cat"], [], ["a cow"]])
    (tmp_path / "images" / "2.png").unlink()
    records = CocoCaptions(tmp_path, max_skipped=0.6).split("train")
    assert list(records.image_ids) == [100, 104] and records.num_skipped == 3
    assert records.captions == [["a dog"], ["a cow"]]
    assert len(caplog.records) == 2
    message = caplog.text
    assert "2 empty captions (first: annotations[1].caption)" in message
    assert "1 images whose file is absent (first:" in message and "2.png" in message
    assert "2 images without a caption (first: image id 101, 1.png)" in message
    with pytest.raises(DataError, match=r"2\.png\).*: 3 of 5 altogether, and max_skipped=0\.5 of them may be left out"):
        CocoCaptions(tmp_path, max_skipped=0.5).split("train")


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("deep\\photo.jpg", "images/deep/photo.jpg"),
        ("images\\photo.jpg", "images/photo.jpg"),
        ("images/photo.jpg", "images/photo.jpg"),
        ("a\\b.jpg", "images/a\\b.jpg"),
        (unicodedata.normalize("NFC", "é/café.jpg"), "images/" + unicodedata.normalize("NFD", "é/café.jpg")),
        (unicodedata.normalize("NFD", "café.jpg"), "images/" + unicodedata.normalize("NFC", "café.jpg")),
        ("Photo.JPG", "images/photo.jpg"),
        ("caf\udce9.jpg", "images/caf\udce9.jpg"),
    ],
)
def test_files_are_found_as_other_machines_name_them(tmp_path, written, on_disk):
    (tmp_path / on_disk).parent.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(os.fsencode(tmp_path / on_disk), "PNG")
    content = {"images": [{"id": 1, "file_name": written}], "annotations": CAPTIONS}
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8-sig")
    (tmp_path / "images").mkdir(exist_ok=True)
    records = CocoCaptions(tmp_path, annotations={"train": "c.json"}).split("train")
    assert records.paths == [tmp_path / on_disk] and records.load_image(0, 2).max() == 255
    assert len(records.fingerprint()) == 64


def test_fingerprint_follows_the_files(make_set, tmp_path):
    source = make_set([["a"], ["b"]])
    before = source.split("train").fingerprint()
    assert source.split("train").fingerprint() == before
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / "1.png")
    assert source.split("train").fingerprint() != before


def test_white_space_and_surrogates():
    assert normalise_caption(" a\rb\x0bc\x0cd\u2028e\u00a0f\tg\n") == "a b c d e f g"
    assert normalise_caption("Don't \ud83d x \U0001f600") == "Don't \ufffd x \U0001f600"
