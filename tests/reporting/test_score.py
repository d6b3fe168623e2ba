"""`fastcap score`: the official format, the official numbers, and one clear error for each mistake."""

import csv
import json

import pytest

from fastcap.data.coco import pair_results
from fastcap.reporting import score as score_command

NUMBER = 12
CAPTIONS = [f"a {w} dog runs on the grass" for w in "red big old new sad wet hot shy odd raw fat dry".split()]
NASTY = {3: "", 5: 'says "hi" (\N{DOG FACE})\r\nand [runs]', 7: "dog dog dog"}


def _references(path, number=NUMBER, **changes):
    images = [{"id": 100 + i, "file_name": f"{i}.jpg"} for i in range(number)]
    annotations = [
        {"id": 3 * i + k, "image_id": 100 + i, "caption": text}
        for i in range(number)
        for k, text in enumerate((CAPTIONS[i], f"The dog number {i} plays outside.", "Dogs (two) on grass"))
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations, **changes}))
    return path


def _results(path, rows=None):
    if rows is None:
        rows = [{"image_id": 100 + i, "caption": NASTY.get(i, CAPTIONS[i - i % 2]), "more": [1]} for i in range(NUMBER)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def files(tmp_path):
    return str(_results(tmp_path / "results.json")), str(_references(tmp_path / "references.json"))


def test_everything_asked_for_is_written(files, tmp_path, capsys):
    out = [str(tmp_path / name) for name in ("out.json", "out.csv")]
    options = ["--json", out[0], "--per-image", out[1]]
    score_command.main([*files, "--tokenizer", "simple", "--metrics", "cider,rouge_l", *options])
    printed = capsys.readouterr().out
    assert "cider" in printed and "bleu" not in printed
    content = json.loads((tmp_path / "out.json").read_text())
    assert set(content["metrics"]) == {"cider", "rouge_l"} and content["tokenizer"] == "simple"
    with open(out[1], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == content["images"] == NUMBER
    assert rows[0]["file_name"] == "0.jpg" and rows[5]["caption"] == NASTY[5] and rows[0]["confidence"] == ""
    mean = sum(float(row["cider"]) for row in rows) / NUMBER
    assert mean == pytest.approx(content["metrics"]["cider"], abs=1e-3)


GOOD = {"image_id": 100, "caption": "a dog"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image_id": 1}, "results.json: must hold a JSON list"),
        ([], "results.json: the list of captions is empty"),
        ([GOOD, {"caption": "a"}], "results.json: [1].image_id must be an integer, found nothing"),
        ([GOOD, {"image_id": 101}], "results.json: [1].caption must be a string, found nothing"),
        ([{"image_id": True, "caption": "a"}], "[0].image_id must be an integer, found bool"),
        ([GOOD, {"image_id": 101, "caption": "b"}, GOOD], "[2].image_id 100 is a duplicate of [0]"),
        ([GOOD, {"image_id": 7, "caption": "b"}], "[1].image_id 7 is not among the ids of images in"),
        ([GOOD], "no caption for 11 of the 12 images with references"),
    ],
)
def test_a_bad_result_file_is_one_line(rows, message, tmp_path, capsys):
    _results(tmp_path / "results.json", rows)
    _references(tmp_path / "references.json")
    _fails([str(tmp_path / "results.json"), str(tmp_path / "references.json")], message, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "cider,blue"], "--metrics cider,blue: choose from"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: there is no folder nowhere"),
    ],
)
def test_a_bad_option_is_named(options, message, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _fails([*files, *options], message, capsys)


def _fails(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        score_command.main([*arguments, "--tokenizer", "simple"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("fastcap: error: ") and message in error and error.count("\n") == 1


def test_a_subset_is_scored_on_request_and_counted(tmp_path, caplog):
    rows = [{"image_id": 100 + i, "caption": CAPTIONS[i]} for i in range(5)]
    references = _references(tmp_path / "references.json")
    content = json.loads(references.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 104]
    del content["images"][0]["file_name"]
    references.write_text(json.dumps(content))
    pairs = pair_results(_results(tmp_path / "results.json", rows), references, allow_missing=True)
    assert [(p.image_id, p.file_name) for p in pairs] == [(100, ""), (101, "1.jpg"), (102, "2.jpg"), (103, "3.jpg")]
    assert "7 images without a caption" in caplog.text and "1 images without a reference" in caplog.text
