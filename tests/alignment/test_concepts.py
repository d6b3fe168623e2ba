import pytest
import torch

from fastcap.alignment.cmfa import ConceptHead, ConceptTable, CrossModalFeatureAlignment, pool
from fastcap.generation.crf import expected_matches
from fastcap.losses import concept_loss

WORDS = (-1, 0, 1, 1, 2)
PHRASES = ConceptTable(WORDS, None, [(1, 2), (2, 4), (4, 1)], [0.5, 0.2, 0.1])


def _head(table=ConceptTable(WORDS)):  # noqa: B008 - never changed
    torch.manual_seed(0)
    return ConceptHead(12, 16, table)


def test_targets_are_the_concepts_of_the_captions():
    tokens = torch.tensor([[[1, 0, 0], [3, 0, 0]], [[2, 3, 4], [0, 0, 0]]])
    assert _head().targets(tokens).tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_concepts_without_a_weight_are_never_predicted():
    head = _head(ConceptTable(WORDS, weights=[0.5, 0.0, 0.1]))
    memory, tokens = torch.randn(2, 6, 16), torch.tensor([[[1, 2, 4], [2, 3, 0]]]).repeat(2, 1, 1)
    guidance = head.guidance(pool(memory))
    assert (guidance.probability[:, [0, 2]] < 1e-9).all() and (guidance.probability[:, [1, 3]] > 0.1).all()
    assert (guidance.probability[:, guidance.words[[0, 2, 3]]] < 1e-9).all()
    assert (expected_matches(guidance, tokens, torch.tensor([[3, 2]] * 2))[:, 1] < 1e-9).all()
    loss = concept_loss(head.training_logits(memory, pool(memory))[""], head.targets(tokens), head.weights)
    loss.backward()
    assert loss.isfinite() and not head.memory_head.weight.grad[1].any()


def test_phrases_are_neighbours_of_the_captions():
    head = _head(PHRASES)
    tokens = torch.tensor([[[1, 2, 0], [3, 4, 1]], [[2, 1, 4], [0, 0, 0]], [[4, 1, 2], [2, 4, 0]]])
    targets = head.targets(tokens)
    assert targets[:, head.parts["phrase"]].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert targets[:, head.parts["concept"]].tolist() == [[1.0, 1.0, 1.0]] * 3


def test_the_branch_is_apart_from_the_memory():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 16, ConceptTable(WORDS), branch_dim=5, feature_dropout=0.5)
    features, branch = torch.rand(4, 6, 12), alignment.concepts.branch
    encoded = alignment.eval().project(features)
    torch.testing.assert_close(encoded.memory, alignment.projection(features))
    torch.testing.assert_close(encoded.concept_features, pool(branch.projection(features)))
    probability = alignment.concepts.guidance(encoded.concept_features).probability[:, 1:]
    torch.testing.assert_close(probability, branch.head(encoded.concept_features).sigmoid())
    # In training both lose channels, each others; what the one predicts is no gradient of the other.
    encoded = alignment.train().project(features)
    logits = alignment.concepts.training_logits(*encoded)
    weights = alignment.projection.weight, branch.projection.weight
    for source, used in (("", [True, False]), ("branch_", [False, True])):
        gradients = torch.autograd.grad(logits[source].sum(), weights, retain_graph=True, allow_unused=True)
        assert [g is not None for g in gradients] == used
    with pytest.raises(ValueError, match=r"concepts\.branch_dim = -1"):
        ConceptHead(12, 16, ConceptTable((-1, 0)), branch_dim=-1)
