from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcap.data import CocoCaptions, DataError
from fastcap.data.coco import normalise_caption

IMAGES = [{"id": 1, "file_name": "0.png"}]
CAPTIONS = [{"id": 1, "image_id": 1, "caption": "a dog"}]

MALFORMED = {
    "an array": ([], "must hold a JSON object"),
    "no images": ({"annotations": []}, "'images' must be a list, found nothing"),
    "no annotations": ({"images": IMAGES}, "'annotations' must be a list, found nothing"),
    "images a dict": ({"images": {}, "annotations": []}, "'images' must be a list, found dict"),
    "image a string": ({"images": ["0.png"], "annotations": []}, "images[0] must be an object"),
    "image id a string": ({"images": [{"id": "1", "file_name": "0.png"}], "annotations": []}, "images[0].id"),
    "image id a bool": ({"images": [{"id": True, "file_name": "0.png"}], "annotations": []}, "images[0].id"),
    "image id too big": ({"images": [{"id": 2**63, "file_name": "0.png"}], "annotations": []}, "images[0].id"),
    "no file name": ({"images": [{"id": 1}], "annotations": []}, "images[0].file_name must be a string, found nothing"),
    "file name a number": ({"images": [{"id": 1, "file_name": 7}], "annotations": []}, "images[0].file_name"),
    "file name empty": ({"images": [{"id": 1, "file_name": ""}], "annotations": []}, "images[0].file_name"),
    "file name outside": ({"images": [{"id": 1, "file_name": "../x.png"}], "annotations": []}, "images[0].file_name"),
    "duplicate id": ({"images": IMAGES * 2, "annotations": []}, "images[1].id 1 is a duplicate"),
    "image_id missing": ({"images": IMAGES, "annotations": [{"caption": "a"}]}, "annotations[0].image_id"),
    "image_id a float": ({"images": IMAGES, "annotations": [{"image_id": 1.0, "caption": "a"}]}, "[0].image_id"),
    "caption a list": (
        {"images": IMAGES, "annotations": [{"image_id": 1, "caption": ["a"]}]},
        "annotations[0].caption",
    ),
    "caption null": ({"images": IMAGES, "annotations": [{"image_id": 1, "caption": None}]}, "annotations[0].caption"),
    "unknown image": (
        {"images": IMAGES, "annotations": [{"image_id": 9, "caption": "a"}]},
        "annotations[0].image_id 9",
    ),
    "no images at all": ({"images": [], "annotations": []}, "images is empty"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_content_names_file_and_field(
    make_set: Callable[..., CocoCaptions], tmp_path: Path, case: str
) -> None:
    content, expected = MALFORMED[case]
    source = make_set([["a dog"]])
    (tmp_path / "annotations" / "captions_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        source.split("train")
    assert "captions_train.json" in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"images": [], "annot', "\x00"])
def test_unreadable_json(make_set: Callable[..., CocoCaptions], tmp_path: Path, text: str) -> None:
    source = make_set([["a dog"]])
    (tmp_path / "annotations" / "captions_train.json").write_text(text)
    with pytest.raises(DataError, match=r"captions_train\.json: annotation file is not readable JSON"):
        source.split("train")


def test_not_utf8(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    source = make_set([["a dog"]])
    (tmp_path / "annotations" / "captions_train.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match=r"captions_train\.json: annotation file is not readable JSON"):
        source.split("train")


def test_missing_places(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    make_set([["a dog"]])
    with pytest.raises(DataError, match=r"nowhere: data folder \(root\) is missing"):
        CocoCaptions(tmp_path / "nowhere").split("train")
    with pytest.raises(DataError, match=r"photos: image folder \(images\) is missing"):
        CocoCaptions(tmp_path, images="photos").split("train")
    with pytest.raises(DataError, match=r"captions_val\.json: annotation file is missing"):
        CocoCaptions(tmp_path).split("val")
    with pytest.raises(DataError, match=r"no split 'valid'; choose from test, train, val"):
        CocoCaptions(tmp_path).split("valid")


@pytest.mark.parametrize("settings", [{"on_bad": "ignore"}, {"max_images": 0}, {"max_images": {"train": -1}}])
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        CocoCaptions(tmp_path, **settings)


def test_skips_are_counted_and_reported_once(
    make_set: Callable[..., CocoCaptions], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_set([["a dog", " \u2028"], ["\r\n"], ["a cat"], [], ["a cow"]])
    (tmp_path / "images" / "2.png").unlink()
    records = source.split("train")
    assert list(records.image_ids) == [100, 104]
    assert records.captions == [["a dog"], ["a cow"]]
    assert len(caplog.records) == 1
    message = caplog.text
    assert "2 empty captions (first:" in message and "annotations[1].caption" in message
    assert "1 images whose file is absent (first:" in message and "2.png" in message
    assert "2 images without a caption (first:" in message and "image id 101 (1.png)" in message


@pytest.mark.parametrize(
    ("captions", "removed", "expected"),
    [
        ([["a"], [""]], None, "annotations[1].caption is empty"),
        ([["a"], ["b"]], "1.png", "1.png"),
        ([["a"], []], None, "image id 101"),
    ],
)
def test_raise_instead_of_skip(
    make_set: Callable[..., CocoCaptions], tmp_path: Path, captions: list[list[str]], removed: str | None, expected: str
) -> None:
    make_set(captions)
    if removed:
        (tmp_path / "images" / removed).unlink()
    with pytest.raises(DataError) as error:
        CocoCaptions(tmp_path, on_bad="raise").split("train")
    assert expected in str(error.value)


def test_nothing_left(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    source = make_set([["a dog"], ["a cat"]])
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no usable image: .*2 images whose file is absent \(first: .*0\.png\)"):
        source.split("train")


def test_absent_files_are_found_without_a_stat_each(
    make_set: Callable[..., CocoCaptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_set([["a dog"]] * 30)
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: calls.append(args) or stat(*args, **kwargs))
    assert len(source.split("train")) == 30
    assert not [args for args in calls if str(args[0]).endswith(".png")]


def test_folders_in_file_names_and_image_folder_by_split(tmp_path: Path) -> None:
    (tmp_path / "val2017" / "deep").mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "val2017" / "deep" / "a.png")
    content = {"images": [{"id": 1, "file_name": "./deep/a.png"}], "annotations": CAPTIONS}
    (tmp_path / "c.json").write_text(json.dumps(content))
    records = CocoCaptions(tmp_path, images={"val": "val2017"}, annotations={"val": "c.json"}).split("val")
    assert records.load_image(0, 2).tolist() == [[[255, 0, 0]] * 2] * 2


@pytest.mark.parametrize("limit", [2, {"train": 2, "val": 1}])
def test_max_images_counts_usable_images(make_set: Callable[..., CocoCaptions], tmp_path: Path, limit: Any) -> None:
    make_set([["a"], [], ["b"], ["c"]])
    assert list(CocoCaptions(tmp_path, max_images=limit).split("train").image_ids) == [100, 102]


def test_fingerprint_follows_the_files(make_set: Callable[..., CocoCaptions], tmp_path: Path) -> None:
    source = make_set([["a"], ["b"]])
    before = source.split("train").fingerprint()
    assert source.split("train").fingerprint() == before
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / "1.png")
    assert source.split("train").fingerprint() != before


def test_white_space_and_surrogates() -> None:
    assert normalise_caption(" a\rb\x0bc\x0cd\u2028e\u00a0f\tg\n") == "a b c d e f g"
    assert normalise_caption("Don't \ud83d x \U0001f600") == "Don't \ufffd x \U0001f600"
