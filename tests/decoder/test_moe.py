import pytest
import torch
from torch import nn

from fastcap.decoder.moe import (
    Expert,
    ExpertMixture,
    GatingNetwork,
    balance_loss,
    select_experts,
)


class PassThrough(nn.Module):
    """An expert that adds a constant, and counts the images it was given."""

    def __init__(self, value):
        super().__init__()
        self.value, self.seen = value, 0

    def prepare(self, memory):
        self.seen += len(memory)
        return memory

    def forward(self, x, prepared):
        return torch.full_like(x, self.value)


def _mixture(num_experts):
    values = iter(range(1, num_experts + 1))
    return ExpertMixture(num_experts, 4, lambda dim: PassThrough(float(next(values))))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_weights_sum_to_one_over_the_chosen(top_k):
    torch.manual_seed(0)
    weights, _ = GatingNetwork(8, 4, top_k)(torch.randn(16, 5, 8))
    torch.testing.assert_close(weights.sum(-1), torch.ones(16))
    assert ((weights > 0).sum(-1) == top_k).all()


def test_top_one_weighs_exactly_one_and_still_teaches_the_gate():
    probabilities = torch.tensor([[0.7, 0.2, 0.1]], requires_grad=True)
    weights = select_experts(probabilities, 1)
    assert weights.tolist() == [[1.0, 0.0, 0.0]]
    (weights * torch.tensor([3.0, 5.0, 7.0])).sum().backward()
    assert probabilities.grad.tolist() == [[3.0, 0.0, 0.0]]


def test_balance_loss_at_its_known_points():
    uniform = torch.eye(4) * 0.04 + 0.24  # each expert is the first choice once, almost uniform
    assert balance_loss(uniform / uniform.sum(-1, keepdim=True)).item() == pytest.approx(1.0, abs=1e-6)
    collapsed = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(8, -1)
    assert balance_loss(collapsed).item() == pytest.approx(4.0)


def test_only_chosen_experts_run_at_inference():
    mixture = _mixture(3).eval()
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    change = mixture(torch.zeros(2, 5, 4), mixture.prepare(torch.zeros(2, 6, 4), weights))
    assert change[0].unique().tolist() == [1.0]
    assert change[1].unique().tolist() == [0.25 * 1 + 0.75 * 2]
    assert [expert.seen for expert in mixture.experts] == [2, 1, 0]


def test_an_idle_expert_gets_a_zero_gradient_in_training():
    mixture = ExpertMixture(2, 8, Expert).train()
    weights = torch.tensor([[1.0, 0.0]]).expand(3, -1)
    mixture(torch.randn(3, 5, 8), mixture.prepare(torch.randn(3, 6, 8), weights)).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in mixture.experts[1].parameters())
    assert any((p.grad != 0).any() for p in mixture.experts[0].parameters())
