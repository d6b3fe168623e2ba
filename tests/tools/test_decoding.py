"""Decoding alone: every setting of both kinds of decoder is timed on every photograph."""

import csv

import pytest
import torch

from fastcap.tools import bench
from fastcap.tools.captioners import write_photographs
from fastcap.tools.random_weights import write_random, write_twin
from tests.tools.test_captioners import SIZES


def test_both_kinds_of_decoder_are_timed_side_by_side(tmp_path, capsys):
    checkpoint = write_random(tmp_path / "random.ckpt", SIZES, num_words=60)
    twin = write_twin(tmp_path / "twin.ckpt", checkpoint, 12)
    images = [str(path) for path in write_photographs(tmp_path)[:2]]
    settings = ["--refinements", "1x1", "8x1", "8x3", "--beams", "1", "2", "--rounds", "2"]
    options = [*settings, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    bench.main(["decoding", "--models", str(checkpoint), str(twin), "--images", *images, *options])
    with open(tmp_path / "decoding.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["decoding"], row["num_steps"], row["length_beam"], row["num_beams"]) for row in rows]
    refined = [("refinement", steps, lengths, "") for steps, lengths in ("11", "81", "83")]
    assert told == [*refined, ("word after word", "", "", "1"), ("word after word", "", "", "2")]
    assert all(row["images"] == "2" and 0 < float(row["decode_ms"]) <= float(row["p95_ms"]) for row in rows)
    one, eight = (float(row["decode_ms"]) for row in rows[:2])
    assert eight > 2 * one, "eight passes take longer than one"
    assert "8 steps, 3 lengths" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["4", "1x0", "x3", "1x2x3"])
def test_a_refinement_is_told_as_steps_and_lengths(wrong, capsys):
    with pytest.raises(SystemExit):
        bench.main(["decoding", "--models", "any.ckpt", "--refinements", wrong])
    assert f"must be like 1x4, steps and length candidates, found '{wrong}'" in capsys.readouterr().err
