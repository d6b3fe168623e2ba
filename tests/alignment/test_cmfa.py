import math

import torch

from fastcap.alignment.cmfa import ConceptTable, CrossModalFeatureAlignment, TextEncoder


def _alignment(words=(-1, 0, 1, 1, 2)):
    torch.manual_seed(0)
    return CrossModalFeatureAlignment(12, 16, ConceptTable(words), embed_dim=8)


def test_feature_dropout_takes_whole_channels_from_an_image_in_training_alone():
    torch.manual_seed(0)
    alignment = CrossModalFeatureAlignment(12, 12, ConceptTable((-1, 0)), embed_dim=8, feature_dropout=0.5)
    torch.nn.init.eye_(alignment.projection.weight)
    torch.nn.init.zeros_(alignment.projection.bias)
    features = torch.rand(4, 6, 12) + 1
    kept = alignment.project(features)
    lost = kept == 0
    assert torch.equal(lost.all(1), lost.any(1)) and 0.2 < lost.float().mean() < 0.8
    assert len(lost[:, 0].unique(dim=0)) > 1  # each image loses others
    torch.testing.assert_close(kept[~lost], 2 * features[~lost])
    assert torch.equal(alignment.eval().project(features), features)


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
