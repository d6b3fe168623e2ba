"""Decoding alone: every setting of both kinds of decoder is timed on the same photographs."""

import csv

import pytest
import torch

from fastcap.tools import bench
from tests.tiny_captioner import write_checkpoint


@pytest.mark.slow
def test_both_kinds_of_decoder_are_timed_side_by_side(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "tiny.ckpt")
    other = write_checkpoint(tmp_path / "other.ckpt", "decoder=autoregressive_mini", "refinement=greedy")
    settings = ["--refinements", "1x1", "8x1", "8x3", "--beams", "1", "2", "--rounds", "2", "--seconds", "0.1"]
    options = [*settings, "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    bench.main(["decoding", "--models", str(checkpoint), str(other), "--max-images", "2", *options])
    with open(tmp_path / "decoding.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = [(row["decoding"], row["num_steps"], row["length_beam"], row["num_beams"]) for row in rows]
    refined = [("refinement", steps, lengths, "") for steps, lengths in ("11", "81", "83")]
    assert told == [*refined, ("autoregressive", "", "", "1"), ("autoregressive", "", "", "2")]
    assert all(0 < float(row["decode_ms"]) <= float(row["p95_ms"]) for row in rows)
    one, eight = (float(row["decode_ms"]) for row in rows[:2])
    assert eight > 2 * one, "eight passes take longer than one"
    assert "| refinement | 8 | 3 |" in capsys.readouterr().out
