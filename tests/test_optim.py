import pytest
import torch

from fastcap.optim import (
    clip_gradients,
    parameter_groups,
    scale_learning_rates,
    warmup_cosine,
    warmup_stable_decay,
)


def _rates(schedule, steps=100):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, rates = schedule(optimizer, total_steps=steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_stable_decay])
def test_schedules_rise_to_the_peak_and_end_low(schedule):
    rates = _rates(schedule)
    assert rates[0] == pytest.approx(0.4) and max(rates) == pytest.approx(2.0)
    assert rates[:5] == sorted(rates[:5]) and rates[80:] == sorted(rates[80:], reverse=True)
    assert 0 < rates[-1] < 0.11


def test_clipping_keeps_the_direction():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for limit, expected in ((None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        parameter.grad = torch.tensor([3.0, 4.0])
        clip_gradients(optimizer, limit)
        assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_only_matrices_decay():
    module = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Linear(4, 5), torch.nn.LayerNorm(5))
    decayed, kept = parameter_groups(module, 0.1)
    assert [p.shape for p in decayed["params"]] == [(5, 4)] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 4 and kept["weight_decay"] == 0.0


def test_a_child_may_learn_slower_under_the_same_schedule():
    module = torch.nn.ModuleDict({"backbone": torch.nn.Linear(4, 5), "decoder": torch.nn.Linear(5, 3)})
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.1, {"backbone": 0.25}), lr=1.0)
    scale_learning_rates(optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in module["backbone"].parameters()} == {0.25}
    assert {rates[id(p)] for p in module["decoder"].parameters()} == {1.0}
    schedule = warmup_cosine(optimizer, total_steps=10, warmup_share=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.05, 0.05])
    assert schedule.get_last_lr() == pytest.approx([0.2, 0.2, 0.05, 0.05])
