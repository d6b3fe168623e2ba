"""The table and the page that an evaluation leaves behind."""

import csv
import html
import re

import numpy as np
import pytest

from fastcap.metrics import CaptionMetrics
from fastcap.reporting.evaluation import Evaluation, ScoredCaption, write_page, write_scores

NASTY = '<script>window.hacked = 1</script> "a" dog, \N{DOG FACE}'


def _scored(number=30):
    references = [[f"a {size} dog on the grass", f"the dog number {size} runs"] for size in range(number)]
    captions = [f"a {n} dog on the {'grass' if n % 3 else 'sand sand'}" for n in range(number)]
    captions[0], captions[1] = NASTY, ""
    references[2] = ["<img src=x onerror=window.hacked=2>", "a dog"]
    files = [f"{n}.jpg" for n in range(number)]
    files[3] = "'><script>window.hacked = 3</script>.jpg"
    ids = [1000 + n for n in range(number)]
    metrics, images = CaptionMetrics(tokenizer="simple").score(ids, captions, references)
    rows = zip(ids, captions, references, [images[i] for i in ids], files, strict=True)
    return [ScoredCaption(*row, 0.5) for row in rows], metrics


def _evaluation(scored, metrics):
    return Evaluation(
        title="<script>window.hacked = 4</script>",
        subtitle="a & b",
        metrics={**metrics, "loss": 1.25},
        captions=scored,
        tokenizer="simple",
        speed={"images_per_s": 125.0, "batch_size": 64, "threads": 2, "device": "cpu"},
        settings={"Checkpoint": "runs/<i>best</i>.ckpt"},
        config="key: </script><script>window.hacked = 5</script>",
    )


def _photo(image_id):
    """A noisy picture, the worst case for its size."""
    return np.random.default_rng(image_id).integers(0, 256, (600, 900, 3), dtype=np.uint8)


def test_scores_csv_holds_every_image_and_reads_back(tmp_path):
    scored, metrics = _scored()
    write_scores(scored, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "image_id", "file_name", "caption", "bleu4", "rouge_l", "cider", "length", "confidence",
    ]  # fmt: skip
    assert [int(row["image_id"]) for row in rows] == [s.image_id for s in scored]
    assert rows[0]["caption"] == NASTY and rows[0]["length"] == str(len(NASTY.split()))
    assert np.mean([float(row["cider"]) for row in rows]) == pytest.approx(metrics["cider"], abs=1e-3)
    assert {row["confidence"] for row in rows} == {"0.5000"}


def test_the_page_shows_pictures_and_loads_and_runs_nothing(tmp_path):
    scored, metrics = _scored()
    page = tmp_path / "report.html"
    assert write_page(_evaluation(scored, metrics), page, _photo)
    text = page.read_text(encoding="utf-8")
    assert len(text) < 2_000_000 and text.count('src="data:image/jpeg;base64,') == 27
    assert set(re.findall(r'(?:src|href)="(.{5})', text)) == {"data:"}
    assert "<script" not in text and "<img src=x" not in text and "default-src 'none'" in text
    for shown in ("Best captions", "Median captions", "Worst captions", html.escape(NASTY.split()[0]), "125", "8.0"):
        assert shown in text
    assert "batches of 64, 2 threads" in text


def test_a_page_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    scored, metrics = _scored()
    (tmp_path / "report.html").mkdir()
    assert not write_page(_evaluation(scored, metrics), tmp_path / "report.html", _photo)
    assert "report.html left out" in caplog.text
