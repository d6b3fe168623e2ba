"""What `fastcap eval` leaves in its folder."""

import contextlib
import csv
import io
import json
import math
from datetime import datetime, timedelta

import pytest

from fastcap import eval as eval_command
from fastcap.data.scenes import Scenes
from fastcap.train import train
from fastcap.utils.provenance import code_state
from tests.data.conftest import write_scenes
from tests.tiny import QUICK, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run on photographs' own format, so that files have names."""
    folder = tmp_path_factory.mktemp("run")
    source = Scenes(16, 16, 16)
    for split in ("train", "val"):
        write_scenes(source.split(split), folder / "data", 48)
    base = [setting for setting in QUICK if setting != "callbacks.samples=null"]  # they write captions.json
    cfg = tiny_config("trainer.max_epochs=1", "data.cache_dir=null", "data.eval_batch_size=5", base=base)
    cfg.data.source = {"_target_": "fastcap.data.CocoCaptions", "root": str(folder / "data")}
    (folder / "run").mkdir()
    return folder, train(cfg, folder / "run")


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    metrics = eval_command.evaluate(run[0] / "run/checkpoints/best.ckpt", "val", {"refinement.num_steps": 4}, folder)
    return folder, metrics


def test_the_numbers_are_the_runs_own(run, evaluated):
    again = {k: v for k, v in evaluated[1].items() if k.startswith("val/")}
    assert again and again == {k: v for k, v in run[1].items() if k.startswith("val/")}


def test_captions_are_in_the_form_that_coco_reads(run, evaluated):
    from pycocotools.coco import COCO

    path = evaluated[0] / "captions_val_fastcap_results.json"
    rows = json.loads(path.read_text())
    assert len(rows) == 16 and all(set(row) == {"image_id", "caption"} for row in rows)
    assert all(type(row["image_id"]) is int and type(row["caption"]) is str for row in rows)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(run[0] / "data/annotations/captions_val.json"))
        assert sorted(truth.loadRes(str(path)).getImgIds()) == sorted(truth.getImgIds())


def test_each_image_is_scored_and_named(evaluated):
    folder, metrics = evaluated
    with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file_name"] for row in rows} == {f"val_{i:06d}.png" for i in range(16)}
    assert sum(float(row["cider"]) for row in rows) / 16 == pytest.approx(metrics["val/cider"], abs=1e-3)
    scores = {row["image_id"]: row["score"] for row in json.loads((folder / "captions.json").read_text())}
    for row in rows:
        assert float(row["confidence"]) == pytest.approx(math.exp(scores[int(row["image_id"])]), abs=1e-3)


def test_results_say_how_they_came_about(evaluated):
    results = json.loads((evaluated[0] / "results.json").read_text())
    assert results["split"] == "val" and results["overrides"] == {"refinement.num_steps": 4}
    assert results["images"] == 16 and results["tokenizer"] in ("ptb", "simple")
    assert results["speed"]["batch_size"] == 5
    assert results["speed"]["images_per_s"] > 0 and results["speed"]["threads"] >= 1
    assert set(results["faults"]) == {"distinct", "repetitions", "length_mean"}
    assert all(results["metrics"][f"val/{name}"] == results["faults"][name] for name in ("distinct", "repetitions"))
    captions = [row["caption"].split() for row in json.loads((evaluated[0] / "captions.json").read_text())]
    assert results["faults"]["distinct"] == 100 * len(set(map(tuple, captions))) / 16
    lengths = list(map(len, captions))
    assert results["lengths"]["captions"] == {str(n): lengths.count(n) for n in sorted(set(lengths))}
    assert sum(results["lengths"]["references"].values()) == 80


def test_results_say_where_they_come_from(run, evaluated):
    trained = json.loads((run[0] / "run/results.json").read_text())
    results = json.loads((evaluated[0] / "results.json").read_text())
    for each in (trained, results):
        assert (each["data"], each["split"], each["images"], each["seed"]) == ("data", "val", 16, 0)
        assert each["decoder"] == "fastcap.decoder.moe_decoder.MoEDecoder" and each["minutes"] > 0
        assert datetime.now() - datetime.fromisoformat(each["date"]) < timedelta(hours=1)
        assert each["refinement"]["num_steps"] == 4 and each["parameters"] == trained["parameters"]
        assert (each["commit"], each["dirty"]) == code_state()
    assert results["given"][1:] == ["split=val", "refinement.num_steps=4"]


def test_the_report_holds_the_photographs_and_settings(evaluated):
    page = evaluated[0] / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 15  # five of each kind out of 16
    for shown in ("best.ckpt", "num_steps 4", "refinement.num_steps=4", "max_epochs: 1", "val_0000"):
        assert shown in text
