"""The benchmark measures what it says."""

import csv
import json

import pytest
import torch

from fastcap.backbone import scan, spatial_mamba
from fastcap.backbone.scan import grid_scan
from fastcap.tools import bench
from fastcap.tools.backbones import SEQUENTIAL, build, peak_memory_mb
from fastcap.tools.measure import count_gflop, in_fresh_process

OURS = "spatial_mamba_mini"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    names = [OURS, OURS + SEQUENTIAL, "efficientnet_lite0"]
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


def test_the_sequential_version_is_the_same_network():
    ours, sequential = build(OURS), build(OURS + SEQUENTIAL)
    images = torch.randn(1, 3, 64, 64)
    calls = sequential.calls
    with torch.inference_mode():
        torch.testing.assert_close(sequential(images), ours(images), rtol=1e-3, atol=1e-4)
    assert sequential.calls > calls
    assert spatial_mamba.grid_scan is scan.grid_scan  # put back


class Scan(torch.nn.Module):
    def forward(self, x):
        projection = torch.zeros(2, 8, 8, 16)
        return grid_scan(torch.zeros(2, 8, 8, 4, 32), torch.zeros(2, 8, 8, 4), projection, projection, chunk_size=16)


def test_gflop_counts_the_scans_matrix_products_and_attention():
    # Two images, four directions of one head, four chunks of Q = 16: C B^T, Q x Q x P, what is written to the state and
    # read from it; and what the chunks mean to each other.
    chunks, between = 4 * (16 * 16 * 16 + 3 * 16 * 16 * 32), 4 * 4 * (16 * 32)
    assert count_gflop(Scan(), torch.zeros(1)) * 1e9 == 2 * 2 * 4 * (chunks + between)
    tokens = (64 // 16) ** 2 + 1
    linear = 12 * 12 * 384**2 * tokens + 16 * 16 * 3 * 384 * (tokens - 1)
    attention = 12 * 2 * tokens**2 * 384
    assert count_gflop(build("vit_small", prepared=False), torch.zeros(1, 3, 64, 64)) * 1e9 == 2 * (linear + attention)


class Eater(torch.nn.Module):
    """Keeps this many MB alive during a pass."""

    def __init__(self, megabytes):
        super().__init__()
        self.megabytes = megabytes

    def forward(self, x):
        return torch.ones(self.megabytes * 1024 * 1024 // 4 * (x.shape[-1] > 32)).sum()


@pytest.mark.slow
def test_memory_is_what_a_pass_takes():
    small, large = (in_fresh_process(peak_memory_mb, Eater, (megabytes,), 64, 1) for megabytes in (5, 80))
    if large != large:
        pytest.skip("this system does not tell its peak memory")
    assert 79 <= large < 88 and 4 <= small < 13  # pages make it a little less


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone", "--backbones", "resnet"], "no backbone 'resnet'"),
        (["backbone", "--backbones", f"{OURS}+depth=2"], "Could not override 'backbone.depth'"),
        (["backbone", "--backbones", f"{OURS}+fast"], f"--backbones {OURS}+fast: Error parsing override"),
        (["backbone", "--backbones", "efficientnet_lite0+sequential"], "no scan to replace"),
        (["backbone", "--sizes", "0"], "positive integer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
