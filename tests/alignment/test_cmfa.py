import math

import pytest
import torch

from fastcap.alignment.cmfa import CrossModalFeatureAlignment, TextEncoder, summary
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.losses import concept_loss
from fastcap.types import Encoded


def _alignment(concepts=(-1, 0, 1, 1, 2)):
    torch.manual_seed(0)
    return CrossModalFeatureAlignment(feature_dim=12, dim=16, concepts=concepts, embed_dim=8)


def encoded(number, width=16):
    memory = torch.randn(number, 6, width)
    return Encoded(memory, summary(memory))


def test_projection_sees_the_image_alone():
    alignment = _alignment()
    features = torch.randn(3, 6, 12)
    together = alignment.project(features)
    assert together.memory.shape == (3, 6, 16)
    torch.testing.assert_close(together.memory[1:2], alignment.project(features[1:2]).memory)
    torch.testing.assert_close(together.seen, torch.cat([together.memory.mean(1), together.memory.amax(1)], 1))


def test_feature_dropout_takes_whole_channels_from_an_image_in_training_alone():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 12, (-1, 0), embed_dim=8, feature_dropout=0.5)
    torch.nn.init.eye_(alignment.projection.weight)
    torch.nn.init.zeros_(alignment.projection.bias)
    features = torch.rand(4, 6, 12) + 1
    kept = alignment.project(features).memory
    lost = kept == 0
    assert torch.equal(lost.all(1), lost.any(1)) and 0.2 < lost.float().mean() < 0.8
    assert len(lost[:, 0].unique(dim=0)) > 1  # each image loses others
    torch.testing.assert_close(kept[~lost], 2 * features[~lost])
    assert torch.equal(alignment.eval().project(features).memory, features)


def test_embeddings_are_unit_vectors():
    tokens, lengths = torch.randint(1, 5, (3, 2, 8)), torch.tensor([[8, 3], [1, 5], [2, 2]])
    image, text, scale = _alignment().embed(torch.randn(3, 6, 16), tokens, lengths)
    assert image.shape == (3, 8) and text.shape == (3, 2, 8)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3, 2))
    assert math.isclose(scale.item(), 1 / 0.07, rel_tol=1e-5)


def test_text_padding_changes_nothing():
    torch.manual_seed(0)
    encoder = TextEncoder(5, 8)
    tokens, lengths = torch.randint(1, 5, (3, 8)), torch.tensor([3, 8, 1])
    other = torch.where(torch.arange(8) >= lengths[:, None], torch.randint(1, 5, (3, 8)), tokens)
    torch.testing.assert_close(encoder(tokens, lengths), encoder(other, lengths))
    torch.testing.assert_close(encoder(tokens[:1, :3], lengths[:1]), encoder(tokens, lengths)[:1])


def test_named_concepts_are_those_of_the_captions():
    tokens = torch.tensor([[[1, 0, 0], [3, 0, 0]], [[2, 3, 4], [0, 0, 0]]])
    named, logits, _ = _alignment().name_concepts(encoded(2), tokens)
    assert logits.shape == named.shape == (2, 3)
    assert named.tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_concepts_without_a_weight_are_never_named():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 16, (-1, 0, 1, 1, 2), concept_weights=[0.5, 0.0, 0.1])
    images, tokens = encoded(2), torch.tensor([[[1, 2, 4], [2, 3, 0]]]).repeat(2, 1, 1)
    probability = alignment.concept_probability(images.seen)
    assert (probability[:, [0, 2]] < 1e-9).all() and (probability[:, [1, 3]] > 0.1).all()
    assert (alignment.word_probability(probability)[:, [0, 2, 3]] < 1e-9).all()
    assert (alignment.naming(probability, tokens, torch.tensor([[3, 2]] * 2))[:, 1] < 1e-9).all()
    named, logits, _ = alignment.name_concepts(images, tokens)
    loss = concept_loss(logits, named, alignment.concept_weights)
    loss.backward()
    assert loss.isfinite() and not alignment.concept_head.weight.grad[1].any()


def _with_phrases():
    torch.manual_seed(0)
    phrases = {"phrases": [(1, 2), (2, 4), (4, 1)], "phrase_weights": [0.5, 0.2, 0.1]}
    return CrossModalFeatureAlignment(12, 16, (-1, 0, 1, 1, 2), **phrases)


def test_named_phrases_are_neighbours_of_the_captions():
    alignment = _with_phrases()
    tokens = torch.tensor([[[1, 2, 0], [3, 4, 1]], [[2, 1, 4], [0, 0, 0]], [[4, 1, 2], [2, 4, 0]]])
    named, logits, _ = alignment.name_concepts(encoded(3), tokens)
    assert logits.shape == named.shape == (3, 6) and alignment.num_concepts == 3
    assert named[:, 3:].tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert named[:, :3].tolist() == [[1.0, 1.0, 1.0]] * 3


def test_phrases_are_looked_up_for_each_images_captions():
    alignment = _with_phrases()
    probability = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    before = torch.tensor([[1, 2], [2, 5], [4, 1], [1, 4]])  # two captions an image; 5 is the boundary
    after = torch.tensor([[2, 4], [4, 1], [1, 2], [5, 1]])
    found = alignment.phrase_probability(probability, before, after)
    of = probability.tolist()
    assert found.tolist() == [[of[0][4], of[0][5]], [of[0][5], 0.0], [of[1][6], of[1][4]], [0.0, of[1][6]]]
    assert _alignment().phrase_probability(torch.zeros(2, 4), before, after).tolist() == [[0.0, 0.0]] * 4


def test_names_are_the_concepts_and_phrases_of_a_caption_each_once():
    probability = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    tokens, lengths = torch.tensor([[[1, 2, 4, 1, 2]], [[2, 4, 1, 2, 4]]]), torch.tensor([[5], [2]])
    named = _with_phrases().naming(probability, tokens, lengths).flatten()
    (a, b), c = probability[:, 1:4].unbind(), probability[:, 4:]
    torch.testing.assert_close(named[0], a.sum() + c[0].sum())
    torch.testing.assert_close(named[1], b[1] + b[2] + c[1, 1])


def test_words_of_one_stem_are_one_concept():
    tokenizer = train_word_tokenizer(["a ring", "two rings", "a box", "three boxes"], min_frequency=1)
    concepts = dict(
        zip(map(tokenizer.decode, ([i] for i in range(tokenizer.vocab_size))), tokenizer.concepts(), strict=True)
    )
    assert concepts["ring"] == concepts["rings"] != concepts["box"] == concepts["boxes"]
    assert set(tokenizer.concepts()[:5]) == {-1}
    assert sorted(set(tokenizer.concepts())) == list(range(-1, max(tokenizer.concepts()) + 1))


def test_judging_channels_are_their_own():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 16, (-1, 0, 1, 1, 2), judge_dim=5, feature_dropout=0.5)
    features, tokens = torch.rand(4, 6, 12), torch.tensor([[[1, 2, 4]]]).repeat(4, 1, 1)
    images = alignment.eval().project(features)
    assert images.memory.shape == (4, 6, 16) and images.seen.shape == (4, 10)
    whole = alignment.projection(features)
    torch.testing.assert_close(images.memory, whole[..., :16])
    torch.testing.assert_close(images.seen, summary(whole[..., 16:]))
    torch.testing.assert_close(
        alignment.concept_probability(images.seen)[:, 1:], alignment.judge_head(images.seen).sigmoid()
    )
    # In training both lose channels, each others; what the one names is no gradient of the other.
    images = alignment.train().project(features)
    truth, logits, judged = alignment.name_concepts(images, tokens)
    assert truth.shape == logits.shape == judged.shape == (4, 3)
    for head, rows in ((logits, slice(0, 16)), (judged, slice(16, 21))):
        [gradient] = torch.autograd.grad(head.sum(), alignment.projection.weight, retain_graph=True)
        moved = gradient.abs().sum(1) > 0
        assert moved[rows].any() and not torch.cat([moved[: rows.start], moved[rows.stop :]]).any()
    with pytest.raises(ValueError, match=r"alignment\.judge_dim = -1"):
        CrossModalFeatureAlignment(12, 16, (-1, 0), judge_dim=-1)


def test_judges_that_do_not_learn_see_nothing_in_training():
    alignment = CrossModalFeatureAlignment(12, 16, (-1, 0, 1, 1, 2), judge_dim=5)
    alignment.judge_head.requires_grad_(False)
    features = torch.rand(4, 6, 12)
    images = alignment.train().project(features)
    torch.testing.assert_close(images.memory, alignment.eval().project(features).memory)
    with pytest.raises(ValueError, match="encoded in training"):
        alignment.judges(images).likely()
    _, logits, judged = alignment.name_concepts(images, torch.tensor([[[1, 2, 4]]]).repeat(4, 1, 1))
    assert logits.shape == (4, 3) and judged is None
