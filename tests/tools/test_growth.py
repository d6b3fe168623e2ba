"""Growth: the fits find what was put in, and every axis is measured."""

import csv
import json

import pytest
import torch
from PIL import Image

from fastcap.tools import bench
from fastcap.tools.growth import fit
from fastcap.tools.random_weights import write_random, write_twin
from tests.tools.test_captioners import SIZES


def test_fits_find_lines_and_powers():
    line = fit([1, 2, 4, 8], [3 + 2 * n for n in (1, 2, 4, 8)])
    assert (line.fixed_ms, line.per_unit_ms, line.r2) == pytest.approx((3, 2, 1))
    assert line.exponent < line.exponent_at_end < 1
    square = fit([1, 2, 4, 8], [5 * n**2 for n in (1, 2, 4, 8)])
    assert square.exponent == pytest.approx(2) and square.exponent_at_end == pytest.approx(2) and square.r2 < 0.99


def test_every_axis_is_measured_and_drawn(tmp_path, capsys):
    checkpoint = write_random(tmp_path / "random.ckpt", SIZES, num_words=60)
    axes = ["--sizes", "32", "64", "--steps", "1", "3", "--batches", "1", "2"]
    options = ["--rounds", "1", "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    bench.main(["growth", "--model", str(checkpoint), *axes, *options])
    with open(tmp_path / "growth.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["axis"], row["size_px"], row["steps"], row["batch"]) for row in rows]
    assert told == [
        ("pixels", "32", "4", "1"),
        ("pixels", "64", "4", "1"),
        ("steps", "32", "1", "1"),
        ("steps", "32", "3", "1"),
        ("batch", "32", "4", "1"),
        ("batch", "32", "4", "2"),
    ]
    assert [float(row["units"]) for row in rows[:2]] == [1.024, 4.096] and all(float(r["p50_ms"]) > 0 for r in rows)
    facts = json.loads((tmp_path / "growth.json").read_text())
    assert set(facts["fits"]) == {"pixels", "steps", "batch"} and facts["base"]["size_px"] == 32
    assert "exponent" in capsys.readouterr().out
    with Image.open(tmp_path / "growth.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20
    twin = write_twin(tmp_path / "twin.ckpt", checkpoint)
    with pytest.raises(SystemExit):
        bench.main(["growth", "--model", str(twin), *axes, *options])
    assert "writes word after word" in capsys.readouterr().err
