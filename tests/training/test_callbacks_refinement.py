"""Refinement's pictures and tables, and the speed/quality curve, of a tiny run."""

import csv
import json
from itertools import groupby

import numpy as np
import pytest

from fastcap import caption as caption_command
from fastcap.training.log_wandb import read_picture


@pytest.fixture
def folder(multirun):
    return multirun[0][0]


def _table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_tells_how_each_caption_came_about(folder):
    rows = _table(folder / "refinement/epoch_000.csv")
    assert list(rows[0]) == ["image_id", "step", "position", "token", "confidence", "remasked"]
    captions = {str(row["image_id"]): row["caption"] for row in json.loads((folder / "captions.json").read_text())}
    images = list(dict.fromkeys(row["image_id"] for row in rows))
    assert len(images) == 3
    for image in images:
        steps = {}
        for row in (row for row in rows if row["image_id"] == image):
            steps.setdefault(int(row["step"]), []).append(row)
        assert sorted(steps) == [1, 2, 3]
        last = [row["token"] for row in steps[3]]
        assert " ".join(word for word, _ in groupby(last)) == captions[image], "repeats are collapsed at the end"
        assert not any(row["remasked"] == "1" for row in steps[3])
        assert any(row["remasked"] == "1" for row in steps[1])
        for step in (1, 2):
            for now, later in zip(steps[step], steps[step + 1], strict=True):
                assert 0 < float(now["confidence"]) <= 1
                if now["remasked"] == "0":
                    assert (now["token"], now["confidence"]) == (later["token"], later["confidence"])


def test_the_curve_meets_the_run_at_its_own_setting(folder):
    rows = _table(folder / "speed_quality.csv")
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert [int(row["num_steps"]) for row in rows] == [1, 3]
    assert float(rows[1]["cider"]) == pytest.approx(metrics["val/cider"], abs=1e-3)
    assert float(rows[1]["bleu4"]) == pytest.approx(metrics["val/bleu4"], abs=1e-3)
    assert all(float(row["decode_ms"]) > 0 for row in rows)


def test_caption_draws_the_same_picture(folder, tmp_path, capsys):
    from PIL import Image

    for place, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / place).mkdir()
        Image.new("RGB", (80, 60), colour).save(tmp_path / place / "photo.jpg")
    pictures = tmp_path / "pictures"
    ckpt = str(folder / "checkpoints/best.ckpt")
    caption_command.main([str(tmp_path), "--ckpt", ckpt, "--picture", str(pictures), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["picture"] for row in rows] == [str(pictures / "photo.png"), str(pictures / "photo_2.png")]
    assert "steps" not in rows[0]
    assert all(np.std(read_picture(pictures / name)) > 5 for name in ("photo.png", "photo_2.png"))
