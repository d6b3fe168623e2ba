"""The benchmark measures what it says."""

import csv
import json

import pytest
import torch

from fastcap.tools import bench

OURS = "spatial_mamba_mini"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    names = [OURS, f"{OURS}+d_state=8", "efficientnet_lite0"]
    threads = torch.get_num_threads()
    options = ["--sizes", "64", "--batches", "1", "2", "--seconds", "0.05", "--threads", str(threads)]
    bench.main(["backbone", "--backbones", *names, *options, "--out", str(folder)])
    with open(folder / "backbone.csv", newline="") as file:
        return folder, list(csv.DictReader(file)), names


def test_table_and_facts(measured):
    folder, rows, names = measured
    assert [(row["backbone"], row["batch"]) for row in rows] == [(name, b) for b in ("1", "2") for name in names]
    facts = json.loads((folder / "backbone.json").read_text())
    assert facts["threads"] == torch.get_num_threads() and facts["matmul_gflop_per_s"] > 1
    assert "processor" in facts and "peak resident memory" in facts["method"].lower()
    for row in rows:
        ms, gflop, batch = float(row["latency_p50_ms"]), float(row["gflop_per_image"]), int(row["batch"])
        assert float(row["gflop_per_s"]) == pytest.approx(gflop * batch / ms * 1e3, rel=0.02, abs=0.02)
        assert int(row["runs"]) >= 1
