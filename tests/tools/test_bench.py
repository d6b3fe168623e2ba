"""The benchmark measures what it says."""

import csv
import json
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from fastcap.backbone import scan, spatial_mamba
from fastcap.backbone.fold import prepare_for_inference
from fastcap.backbone.scan import ssd_scan
from fastcap.build import CONFIG_DIR
from fastcap.tools import bench
from fastcap.tools.backbones import SEQUENTIAL, build, default_backbones
from fastcap.tools.measure import count_gflop, in_fresh_processes, peak_memory_mb, time_interleaved

OURS = "spatial_mamba_mini"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    names = [OURS, OURS + SEQUENTIAL, "efficientnet_lite0"]
    threads = torch.get_num_threads()
    options = ["--sizes", "64", "--batches", "1", "2", "--rounds", "1", "--threads", str(threads), "--out", str(folder)]
    bench.main(["backbone", "--backbones", *names, *options])
    with open(folder / "backbone.csv", newline="") as file:
        return folder, list(csv.DictReader(file)), names


def test_table_plot_and_facts(measured):
    folder, rows, names = measured
    assert [(row["backbone"], row["batch"]) for row in rows] == [(name, b) for b in ("1", "2") for name in names]
    facts = json.loads((folder / "backbone.json").read_text())
    assert facts["threads"] == torch.get_num_threads() and facts["matmul_peak_gflop_per_s"] > 1
    assert "processor" in facts and "peak resident memory" in facts["method"].lower()
    for row in rows:
        ms, gflop, batch = float(row["latency_p50_ms"]), float(row["gflop_per_image"]), int(row["batch"])
        assert float(row["gflop_per_s"]) == pytest.approx(gflop * batch / ms * 1e3, rel=0.02)
        share = float(row["gflop_per_s"]) / facts["matmul_peak_gflop_per_s"]
        assert float(row["share_of_peak"]) == pytest.approx(share, rel=0.02, abs=1e-3)
        assert int(row["runs"]) >= 1 and float(row["peak_memory_mb"]) >= 0
    with Image.open(folder / "backbone.png") as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20  # lines were drawn


def test_the_sequential_version_is_the_same_network():
    ours, sequential = build(OURS), build(OURS + SEQUENTIAL)
    images = torch.randn(1, 3, 64, 64)
    calls = sequential.calls
    with torch.inference_mode():
        torch.testing.assert_close(sequential(images), ours(images), rtol=1e-3, atol=1e-4)
    assert sequential.calls > calls
    assert spatial_mamba.grid_scan is scan.grid_scan  # put back


def test_a_backbone_is_measured_with_changes():
    changed = build(f"{OURS}+ffn_ratio=1.5", prepared=False)
    block = changed.blocks[0]
    assert block.ffn[0].out_features == 1.5 * changed.feature_dim
    assert build(f"{OURS}+d_state=4{SEQUENTIAL}").backbone.blocks[0].mixer.d_state == 4


@pytest.mark.parametrize("name", [OURS, "efficientnet_lite0"])
def test_batch_norms_are_folded_in_ours_and_in_the_peers(name):
    torch.manual_seed(0)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        norm_of_levels = [] if name == OURS else ["backbone.norm=true"]
        plain = instantiate(compose("train", overrides=[f"backbone={name}", *norm_of_levels]).backbone).eval()
    images = torch.randn(1, 3, 64, 64)
    norms = [module for module in plain.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms if name == OURS else ():  # the packaged weights bring statistics
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
        expected = plain(images)
        folded = prepare_for_inference(plain, 64)
        assert (folded(images) - expected).norm() / expected.norm() < 1e-4
    left = [module_name for module_name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and left == ([] if name == OURS else ["norm"])  # of features side by side, after no convolution


class Scan(torch.nn.Module):
    def forward(self, x):
        decay = torch.zeros(2, 64, 4)
        projection = torch.zeros(2, 64, 1, 16)
        return ssd_scan(torch.zeros(2, 64, 4, 32), decay, projection, projection, chunk_size=64)[0]


def test_gflop_counts_the_scans_matrix_products_and_attention():
    # One chunk of Q = 64: C B^T once a group; Q x Q x P, what is written to the state and read from it for each of 4
    # heads; and what the start (none, but room for it) and the chunk mean to the end.
    products, state = 2 * (64 * 64 * 16) + 2 * 4 * (64 * 64 * 32), 2 * 4 * (32 * 64 * 16)
    assert count_gflop(Scan(), torch.zeros(1)) * 1e9 == 2 * (products + 2 * state + 2 * 4 * (2 * 16 * 32))
    tokens = (64 // 16) ** 2 + 1
    linear = 12 * 12 * 384**2 * tokens + 16 * 16 * 3 * 384 * (tokens - 1)
    attention = 12 * 2 * tokens**2 * 384
    assert count_gflop(build("vit_small", prepared=False), torch.zeros(1, 3, 64, 64)) * 1e9 == 2 * (linear + attention)


def test_times_are_those_of_the_work():
    works = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}
    times = time_interleaved(works, rounds=3)
    assert len(times["short"]) > len(times["long"]) >= 3 * 5
    assert min(times["short"]) >= 0.002 and min(times["long"]) >= 0.02


class Eater(torch.nn.Module):
    """Keeps this many MB alive during a pass."""

    def __init__(self, megabytes):
        super().__init__()
        self.megabytes = megabytes

    def forward(self, x):
        return torch.ones(self.megabytes * 1024 * 1024 // 4 * (x.shape[-1] > 32)).sum()


def test_memory_is_what_a_pass_takes():
    calls = [(Eater, (megabytes,), 1, 64) for megabytes in (5, 80, 5)]
    small, large, small_again = in_fresh_processes(peak_memory_mb, calls, threads=1)
    if large != large:
        pytest.skip("this system does not tell its peak memory")
    # Pages make it a little less; what came before does not show.
    assert 79 <= large < 88 and 4 <= small < 13 and 4 <= small_again < 13


def test_defaults_hold_ours_beside_their_sequential_versions_and_the_peers():
    names = default_backbones()
    ours = [name for name in names if name.startswith("spatial_mamba_") and not name.endswith(SEQUENTIAL)]
    assert {"spatial_mamba_tiny", "spatial_mamba_small"} <= set(ours)
    assert {name + SEQUENTIAL for name in ours} | {"vit_small", "efficientnet_lite0"} == set(names) - set(ours)
    arguments = bench.parse_arguments(["backbone"])
    assert arguments.sizes == [128, 224, 384, 512] and arguments.batches == [1, 16]


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
