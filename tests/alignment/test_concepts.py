import torch

from fastcap.alignment.cmfa import ConceptHead, ConceptTable
from fastcap.generation.crf import expected_cider
from fastcap.losses import concept_loss

WORDS = (-1, 0, 1, 1, 2)
PHRASES = ConceptTable(WORDS, [1, 1, 1, 0.5, 0.2, 0.1], None, [(1, 2), (2, 4), (4, 1)])


def _head(table=ConceptTable(WORDS)):  # noqa: B008 - never changed
    torch.manual_seed(0)
    return ConceptHead(16, table)


def test_targets_are_the_concepts_of_the_captions():
    tokens = torch.tensor([[[1, 0, 0], [3, 0, 0]], [[2, 3, 4], [0, 0, 0]]])
    assert _head().targets(tokens).tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_concepts_without_a_weight_are_never_predicted():
    head = _head(ConceptTable(WORDS, weights=[0.5, 0.0, 0.1]))
    memory, tokens = torch.randn(2, 6, 16), torch.tensor([[[1, 2, 4], [2, 3, 0]]]).repeat(2, 1, 1)
    guidance = head.guidance(memory)
    assert (guidance.probability[:, [0, 2]] < 1e-9).all() and (guidance.probability[:, [1, 3]] > 0.1).all()
    assert (guidance.probability[:, guidance.words[[0, 2, 3]]] < 1e-9).all()
    assert (expected_cider(guidance, tokens, torch.tensor([[3, 2]] * 2))[:, 1] < 1e-9).all()
    loss = concept_loss(head(memory), head.targets(tokens), head.weights)
    loss.backward()
    assert loss.isfinite() and not head.memory_head.weight.grad[1].any()


def test_phrases_are_neighbours_of_the_captions():
    head = _head(PHRASES)
    tokens = torch.tensor([[[1, 2, 0], [3, 4, 1]], [[2, 1, 4], [0, 0, 0]], [[4, 1, 2], [2, 4, 0]]])
    targets = head.targets(tokens)
    assert targets[:, head.parts["phrase"]].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert targets[:, head.parts["concept"]].tolist() == [[1.0, 1.0, 1.0]] * 3
