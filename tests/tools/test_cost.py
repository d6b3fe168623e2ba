"""What a recipe takes is counted, and what its file says of it is what the counter says."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcap.build import CONFIG_DIR, build_backbone
from fastcap.tools import bench
from fastcap.tools.cost import Assumptions, _noting, estimate
from fastcap.tools.measure import count_gflop
from tests.tiny import TINY, tiny_config

GIVEN = Assumptions(images=10**9, num_words=50, caption_tokens=6)


@pytest.fixture(scope="module")
def tiny():
    return estimate(TINY, GIVEN)["training"]


def test_kept_bytes_are_those_of_the_backward_pass():
    layer, kept = nn.Linear(100, 10, bias=False), {}
    inputs = torch.randn(7, 100)
    with _noting(kept, layer):
        layer(inputs).exp().sum()
    assert sum(kept.values()) == 4 * (7 * 100 + 7 * 10), "the layer's input and the exponential; not its weight"


def test_an_estimate_adds_up(tiny):
    cost = estimate([*TINY, "data.image_size=64"], GIVEN)["training"]
    backbone = build_backbone(tiny_config("data.image_size=64")).eval()
    forward = count_gflop(backbone, torch.randn(1, 3, 64, 64))
    assert 2.5 * forward < cost.gflop_per_image < 8 * forward, "backward twice the forward, and the decoder"
    assert cost.activation_mb_per_image > 2 * tiny.activation_mb_per_image > 0
    assert cost.parameters_m == pytest.approx(0.105, abs=0.02)
    state = 16 * cost.parameters_m / 1e3
    assert state < cost.state_gb < state + 0.003, "and what every batch keeps once"
    assert cost.memory_gb == pytest.approx(cost.state_gb + 8 * cost.activation_mb_per_image / 1e3)


def test_hours_follow_from_what_is_assumed(tiny):
    assert tiny.hours == max(tiny.compute_hours, tiny.traffic_hours) > 0.1
    assert tiny.compute_hours == pytest.approx(2e9 * tiny.gflop_per_image / (312e3 * GIVEN.utilisation) / 3600)
    four = estimate(TINY, replace(GIVEN, devices=4, tflops=156.0))["training"]
    assert four.compute_hours == pytest.approx(tiny.compute_hours / 2)
    assert four.traffic_hours == pytest.approx(tiny.traffic_hours / 4)


def test_the_command_writes_table_and_facts(tmp_path, capsys):
    bench.main(["cost", *TINY, "--devices", "2", "--num-words", "50", "--out", str(tmp_path)])
    [row] = csv.DictReader((tmp_path / "cost.csv").read_text().splitlines())
    assert float(row["memory_gb"]) >= float(row["state_gb"])
    facts = json.loads((tmp_path / "cost.json").read_text())
    assert facts["assumptions"]["devices"] == 2 and facts["overrides"] == TINY
    assert "2 GPUs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["cost", "--utilisation", "0"])


@pytest.mark.slow
def test_the_head_of_coco_base_says_what_is_counted():
    head = (Path(CONFIG_DIR) / "experiment/coco_base.yaml").read_text().split("defaults:")[0].replace("\n#", "")
    costs = estimate(["experiment=coco_base"], Assumptions())
    assert list(costs) == ["sight", "teacher", "taught", "reinforced"]
    for stage, cost in costs.items():
        said = re.search(
            rf"{stage} +([\d.]+) M +([\d.]+) GFLOP +([\d.]+) MB +([\d.]+) GB +(\d+) epochs +([\d.]+) hours", head
        )
        assert said, stage
        counted = [cost.parameters_m, cost.gflop_per_image, cost.activation_mb_per_image, cost.memory_gb]
        assert [float(n) for n in said.groups()] == pytest.approx(
            [*counted, cost.epochs, cost.hours], rel=0.04, abs=0.05
        )
    together = re.search(r"([\d.]+) hours together", head)
    assert float(together[1]) == pytest.approx(sum(cost.hours for cost in costs.values()), rel=0.04)


def test_a_recipes_trainings_are_estimated_each():
    costs = estimate([*TINY, "recipe=taught_by_twin", "decoder.num_experts=2"], GIVEN)
    assert list(costs) == ["sight", "teacher", "taught", "reinforced"]
    assert {name: cost.epochs for name, cost in costs.items()} == dict.fromkeys(costs, 2), "the command line's"
    # Five captions are sampled besides, twice refined at the least.
    assert costs["reinforced"].gflop_per_image > 1.2 * costs["sight"].gflop_per_image
