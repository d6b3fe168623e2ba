import pytest
import torch

from fastcap.alignment.cmfa import CrossModalFeatureAlignment
from fastcap.alignment.concepts import ConceptHead, ConceptTable, pool
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
    probability = head.probability(pool(memory))
    assert (probability[:, [0, 2]] < 1e-9).all() and (probability[:, [1, 3]] > 0.1).all()
    guidance = head.guidance(pool(memory))
    assert (guidance.word_probability()[:, [0, 2, 3]] < 1e-9).all()
    assert (guidance.expected_matches(tokens, torch.tensor([[3, 2]] * 2))[:, 1] < 1e-9).all()
    loss = concept_loss(head.training_logits(memory, pool(memory))[""], head.targets(tokens), head.weights)
    loss.backward()
    assert loss.isfinite() and not head.memory_head.weight.grad[1].any()


def test_phrases_are_neighbours_of_the_captions():
    head = _head(PHRASES)
    tokens = torch.tensor([[[1, 2, 0], [3, 4, 1]], [[2, 1, 4], [0, 0, 0]], [[4, 1, 2], [2, 4, 0]]])
    targets = head.targets(tokens)
    assert targets[:, head.parts["phrase"]].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert targets[:, head.parts["concept"]].tolist() == [[1.0, 1.0, 1.0]] * 3


def test_phrases_are_looked_up_for_each_images_captions():
    probability = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    before = torch.tensor([[1, 2], [2, 5], [4, 1], [1, 4]])  # two captions an image; 5 is the boundary
    after = torch.tensor([[2, 4], [4, 1], [1, 2], [5, 1]])
    found = _head(PHRASES).bigram_probability(probability, before, after)
    of = probability.tolist()
    assert found.tolist() == [[of[0][4], of[0][5]], [of[0][5], 0.0], [of[1][6], of[1][4]], [0.0, of[1][6]]]
    assert _head().bigram_probability(torch.zeros(2, 4), before, after).tolist() == [[0.0, 0.0]] * 4


def test_matches_are_the_concepts_and_phrases_of_a_caption_each_once():
    probability = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    tokens, lengths = torch.tensor([[[1, 2, 4, 1, 2]], [[2, 4, 1, 2, 4]]]), torch.tensor([[5], [2]])
    matches = _head(PHRASES).expected_matches(probability, tokens, lengths).flatten()
    (a, b), c = probability[:, 1:4].unbind(), probability[:, 4:]
    torch.testing.assert_close(matches[0], a.sum() + c[0].sum())
    torch.testing.assert_close(matches[1], b[1] + b[2] + c[1, 1])


def test_the_branch_is_apart_from_the_memory():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 16, ConceptTable(WORDS), branch_dim=5, feature_dropout=0.5)
    features, branch = torch.rand(4, 6, 12), alignment.concepts.branch
    encoded = alignment.eval().project(features)
    torch.testing.assert_close(encoded.memory, alignment.projection(features))
    torch.testing.assert_close(encoded.concept_features, pool(branch.projection(features)))
    probability = alignment.concepts.probability(encoded.concept_features)[:, 1:]
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
