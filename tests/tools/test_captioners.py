"""Captioners side by side: what is measured, how often, and the table that comes of it."""

import csv
import json
import time
from types import SimpleNamespace

import pytest
import torch
from fastcap.tools.headline import COLUMNS, MORE_COLUMNS, references
from PIL import Image

from fastcap.build import load_checkpoint
from fastcap.generation.dlag import top_lengths
from fastcap.serving.captioner import Captioner
from fastcap.tools import bench, peers, systems
from fastcap.tools.captioners import MIN_RUNS, measure, time_spread, write_photographs
from fastcap.tools.footprint import peak_mb
from fastcap.tools.random_weights import write_random, write_twin
from fastcap.tools.systems import Spec, build, our_specs
from fastcap.training.checkpoints import CheckpointError
from tests.tiny import TINY
from tests.tools.shrunk import SHRUNK

SIZES = [setting for setting in TINY if setting.startswith(("data.image_size", "backbone.", "decoder.", "alignment."))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random(tmp_path_factory.mktemp("random") / "random.ckpt", SIZES, num_words=60)


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    pytest.importorskip("transformers")
    known = peers.ARCHITECTURES["blip-base"]
    small = peers.build_peer("blip-base", SHRUNK["blip-base"])
    with pytest.MonkeyPatch.context() as patch:
        shrunk = peers.Architecture(known.make, known.parts, 32, known.parameters, known.pixels, known.any_size)
        patch.setitem(peers.ARCHITECTURES, "blip-base", shrunk)
        patch.setattr(peers, "_published", lambda name: small)
        options = ["--peers", "blip-base", "--size", "64", "--beams", "1", "2", "--num-steps", "1", "4", "--no-compile"]
        timing = ["--seconds", "0.01", "--rounds", "2", "--threads", str(torch.get_num_threads()), "--no-memory"]
        bench.main(["captioners", "--models", str(checkpoint), *options, *timing, "--out", str(folder)])
    with open(folder / "bench.csv", newline="") as file:
        return folder, list(csv.DictReader(file))


def test_table_has_every_system_and_the_agreed_columns(measured):
    _, rows = measured
    assert tuple(rows[0]) == (*COLUMNS, *MORE_COLUMNS)
    assert COLUMNS == ("system", "runtime", "precision", "params", "file_mb", "p50_ms", "p95_ms", "peak_mb")
    told = [(row["system"], row["resolution"], row["beams"], row["steps"]) for row in rows]
    assert told[:4] == [
        ("fastcap", "32", "", "1"),
        ("fastcap", "32", "", "4"),
        ("fastcap-autoregressive", "32", "1", ""),
        ("fastcap-autoregressive", "32", "2", ""),
    ]
    assert told[4:] == [("blip-base", side, beams, "12") for side in ("64", "32") for beams in ("1", "2")]
    for row in rows:
        assert float(row["p95_ms"]) >= float(row["p50_ms"]) > 0 and int(row["runs"]) >= MIN_RUNS
        assert row["weights"] == "random" and row["runtime"] == "eager" and row["precision"] == "fp32"
        assert float(row["file_mb"]) == pytest.approx(4e-6 * int(row["params"]), rel=0.1, abs=0.006)
    assert len(references(rows)) == 2


def test_facts_and_plot(measured):
    folder, _ = measured
    facts = json.loads((folder / "bench.json").read_text())
    assert facts["matmul_gflop_per_s"] > 0.1 and facts["threads"] == torch.get_num_threads()
    assert "random weights" in facts["method"] and facts["images"] == [f"noise_{i}.jpg 500x375 JPEG" for i in range(3)]
    with Image.open(folder / "bench.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20


def test_random_weights_have_the_length_asked_for(checkpoint, tmp_path):
    twin = load_checkpoint(write_twin(tmp_path / "twin.ckpt", checkpoint))
    ours = load_checkpoint(checkpoint)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert top_lengths(ours.model.length(ours.model.encode(images).memory), 3)[:, 0].tolist() == [12, 12]
        refinement = twin.model(images)
    assert refinement.num_passes == 12 and refinement.lengths.tolist() == [11, 11]
    assert twin.tokenizer.to_json() == ours.tokenizer.to_json()
    shapes = [{k: v.shape for k, v in each.model.backbone.state_dict().items()} for each in (ours, twin)]
    assert shapes[0] == shapes[1] and twin.model.decoder.dim == ours.model.decoder.dim
    assert len(twin.model.decoder.layers) == len(ours.model.decoder.layers)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_random(checkpoint / "below.ckpt", SIZES, num_words=60)


def test_an_exports_folder_stands_for_its_files(tmp_path, monkeypatch):
    files = [str(tmp_path / f"fastcap-{name}.onnx") for name in ("fp32", "int8")]
    for name in (*files, "export.json"):
        (tmp_path / name).write_text("{}")
    opened = SimpleNamespace(info={"num_steps": 4})
    monkeypatch.setattr(Captioner, "load", lambda path: opened)
    assert our_specs([str(tmp_path)], [1, 4], [], True) == [Spec(path=file) for file in files]
    assert our_specs(files[:1], [1], [1, 2], True) == [Spec(path=files[0], num_steps=count) for count in (1, 2)]


def test_runs_follow_the_budget_and_take_turns():
    order = []

    def work(name, seconds):
        return lambda: (time.sleep(seconds), order.append(name))

    times = time_spread({"slow": work("slow", 0.03), "quick": work("quick", 0.001)}, seconds=0.03, rounds=5)
    assert len(times["slow"]) == MIN_RUNS and MIN_RUNS < len(times["quick"]) <= 30
    assert min(times["slow"]) >= 0.03
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns.count("slow") == 1 + 5  # after the warm-up, one in each round


@pytest.mark.slow
def test_memory_is_that_of_a_fresh_process(checkpoint, tmp_path):
    image = str(write_photographs(tmp_path, count=1)[0])
    ballast = torch.ones(300 * 1024 * 1024 // 4)  # of this process, not of the measured one
    peak = peak_mb(Spec(path=str(checkpoint)), image, threads=1)
    if peak != peak:
        pytest.skip("this system does not tell its peak memory")
    assert 50 < peak < 1500 and ballast.sum() > 0
    with pytest.raises(RuntimeError, match="no such checkpoint"):
        peak_mb(Spec(path=str(tmp_path / "none.ckpt")), image, threads=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name checkpoints or export folders with --models, or take --random"),
        (["--models", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["--random", "--peers", "clip"], "no peer 'clip'"),
        (["--random", "--images", "nowhere"], "--images nowhere: no such file"),
        (["--random", "--seconds", "0"], "--seconds 0.0 must be positive"),
        (["--random", "--num-tokens", "1"], "--num-tokens 1 must be at least 2"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["captioners", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_what_does_not_compile_is_left_out_and_said(checkpoint, tmp_path, monkeypatch):
    def refuse(spec, *_):
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(systems, "_compiled", refuse)
    specs, told = [Spec(path=str(checkpoint)), Spec(path=str(checkpoint), compiled=True)], []
    options = {"threads": torch.get_num_threads(), "seconds": 0.01, "rounds": 1, "memory": False}
    rows, facts = measure(specs, write_photographs(tmp_path, count=1), **options, report=told.append)
    assert [row["runtime"] for row in rows] == ["eager"]
    [reason] = facts["left_out"].values()
    assert "no C++ compiler" in reason and any("left out" in line for line in told)


@pytest.mark.slow
def test_compiled_writes_the_same_captions(checkpoint, tmp_path):
    image = str(write_photographs(tmp_path, count=1)[0])
    plain, row = build(Spec(path=str(checkpoint)), 1)
    compiled, compiled_row = build(Spec(path=str(checkpoint), compiled=True), 1)
    assert compiled.caption(image) == plain.caption(image)
    assert compiled_row == row | {"runtime": "torch.compile"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", peers.ARCHITECTURES)
def test_published_peers_write_twelve_tokens(name, tmp_path):
    image = write_photographs(tmp_path, count=1)[0]
    assert peers.Peer(name, peers.ARCHITECTURES[name].size).generate(image).shape == (12,)
    peers._published.cache_clear()
