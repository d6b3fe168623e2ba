"""The benchmark measures what it says."""

import csv
import importlib.util
import itertools
import json
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from fastcap.backbone import cross_scan, mixer
from fastcap.backbone.fold import prepare_for_inference
from fastcap.backbone.scan import ssd_scan
from fastcap.build import CONFIG_DIR, ConfigError
from fastcap.tools import bench
from fastcap.tools.backbones import SEQUENTIAL, build, default_backbones
from fastcap.tools.measure import count_gflop, in_fresh_processes, peak_memory_mb, time_interleaved
from fastcap.tools.scans import BASELINES, ON_DEMAND, UNTRAINED, measure_scans, other_forms, our_forms

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


def test_scan_forms_are_timed_against_the_recurrence(tmp_path, capsys):
    options = ["--side", "6", "--width", "16", "--head-dims", "4", "--rounds", "1", "--threads", "1"]
    bench.main(["scan", *options, "--out", str(tmp_path)])
    with open(tmp_path / "scan.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    forms = [form for form in our_forms() | other_forms() if form not in ON_DEMAND]
    assert [row["form"] for row in rows if row["pass"] == "forward"] == forms
    assert [row["form"] for row in rows if row["pass"] != "forward"] == [
        form for form in forms if form not in UNTRAINED
    ]
    for row, (column, form) in itertools.product(rows, BASELINES.items()):
        base = [r for r in rows if r["form"] == form and r["pass"] == row["pass"]]
        assert bool(row[column]) == bool(base)
        for same in base:
            expected = float(same["ms"]) / float(row["ms"])
            assert float(row[column]) == pytest.approx(expected, rel=0.05, abs=0.01)
    assert "36 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["scan", "--width", "10", "--head-dims", "3"])
    assert "does not divide" in capsys.readouterr().err


def test_forms_of_the_scan_can_be_chosen():
    rows, _ = measure_scans(side=2, width=4, head_dims=[4], rounds=1, names=["sequential", "chunks"])
    assert {row["form"] for row in rows} == {"sequential", "chunks"}
    assert all(row["speedup"] > 0 and row["speedup_over_mambapy"] is None for row in rows)
    with pytest.raises(ConfigError, match="no scan 'parallel'"):
        measure_scans(side=2, width=4, head_dims=[4], rounds=1, names=["parallel"])


@pytest.mark.parametrize(
    "form", ["published_sequential", "published_indexed", "mambapy_sequential", "mambapy_parallel", "chunks", "dual"]
)
def test_forms_of_the_scan_are_one_function(form):
    if form.startswith("mambapy"):
        pytest.importorskip("mambapy", reason="comparing with mambapy needs the extra `peers`")
    generator = torch.Generator().manual_seed(0)
    x, log_decay, b, c = (torch.randn(2, 3, 5, *size, generator=generator) for size in ((8, 3), (8,), (4,), (4,)))
    inputs = x, -log_decay.abs() - 0.01, b, c
    torch.testing.assert_close(
        (our_forms() | other_forms())[form](*inputs), our_forms()["sequential"](*inputs), rtol=1e-4, atol=1e-4
    )


def test_without_mambapy_its_speedups_are_left_empty(monkeypatch):
    monkeypatch.setattr("fastcap.tools.scans.mambapy_scans", dict)
    rows, facts = measure_scans(side=2, width=4, head_dims=[4], rounds=1)
    assert {row["speedup_over_mambapy"] for row in rows} == {None} and facts["mambapy"] is None
    assert all(row["speedup_over_published"] for row in rows)
    assert not any(row["form"].startswith("mambapy") for row in rows)


def test_the_sequential_version_is_the_same_network():
    ours, sequential = build(OURS), build(OURS + SEQUENTIAL)
    images = torch.randn(1, 3, 64, 64)
    calls = sequential.calls
    with torch.inference_mode():
        torch.testing.assert_close(sequential(images), ours(images), rtol=1e-3, atol=1e-4)
    assert sequential.calls > calls
    assert mixer.grid_scan is cross_scan.grid_scan  # put back


def test_a_backbone_is_measured_with_changes():
    changed = build(f"{OURS}+mixers=[order_free]+ffn_ratio=1.5", prepared=False)
    block = changed.blocks[0]
    assert isinstance(block.mixer, mixer.OrderFreeMixer)
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


def test_loaders_deliver_what_is_counted(tmp_path, capsys):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "set" / "images" / f"{i}.jpg")
    words = {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(12)]}
    words["annotations"] = [{"image_id": i % 12, "caption": "a dog"} for i in range(60)]
    (tmp_path / "set" / "c.json").write_text(json.dumps(words))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("epoch,time/images_per_s\n0,\n0,50\n1,150\n")
    loaders = ["folder", "cached"] + (["shards", "shards-jpeg"] if importlib.util.find_spec("litdata") else [])
    options = ["loader", "--root", str(tmp_path / "set"), "--annotations", "c.json", "--size", "16", "--batch", "4"]
    options += ["--workers", "0", "--rounds", "1", "--out", str(tmp_path)]
    began = time.perf_counter()
    bench.main([*options, "--loaders", *loaders, "--runs", str(tmp_path / "run"), "--consumed", "10"])
    most = 256 * 2 * len(loaders) / (time.perf_counter() - began)  # two rounds, of which one is timed
    with open(tmp_path / "loader.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loader"] for row in rows] == loaders and {row["workers"] for row in rows} == {"0"}
    for row in rows:
        rate = float(row["images_per_s"])
        assert rate > most / 2 / len(loaders) and float(row["x run"]) == pytest.approx(rate / 100, abs=0.01)
        assert float(row["x given"]) == pytest.approx(rate / 10, abs=0.01)
    facts = json.loads((tmp_path / "loader.json").read_text())
    assert facts["bytes_per_image"]["cached"] == 3 * 16 * 16 and facts["images"] == 12
    assert "training takes 100 images/s (run)" in capsys.readouterr().out
    for wrong, message in [
        (["--loaders", "tape"], "no loader 'tape'"),
        (["--runs", str(tmp_path / "set")], "no time/images_per_s"),
        (["--consumed", "0"], "--consumed must be a positive number"),
        (["--workers", "-1"], "positive integer"),
    ]:
        with pytest.raises(SystemExit):
            bench.main([*options, *wrong])
        assert message in capsys.readouterr().err


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
