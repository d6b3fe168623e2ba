import math

import pytest
import torch
from torch.nn import functional as F

from fastcap.losses import alignment_loss, concept_loss, length_loss, token_loss


def test_token_loss_counts_hidden_tokens_only():
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    scored = torch.rand(3, 5) < 0.5
    scored[0, 0] = True
    loss = token_loss(logits, targets, scored)
    one_by_one = [-logits[i, j].log_softmax(-1)[targets[i, j]] for i in range(3) for j in range(5) if scored[i, j]]
    torch.testing.assert_close(loss, torch.stack(one_by_one).mean())
    changed = logits.clone()
    changed[~scored] += torch.randn_like(changed[~scored])
    assert torch.equal(token_loss(changed, targets, scored), loss)


def test_length_loss_is_cross_entropy_over_captions():
    logits, lengths = torch.randn(2, 6), torch.tensor([[1, 6, 3], [2, 2, 5]])
    expected = F.cross_entropy(logits.repeat_interleave(3, 0), lengths.flatten() - 1)
    torch.testing.assert_close(length_loss(logits, lengths), expected)


def test_alignment_loss_with_one_caption_is_clips():
    image, text = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(5.0)
    similarity, own = scale * image @ text.T, torch.arange(4)
    expected = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
    torch.testing.assert_close(alignment_loss(image, text[:, None], scale), expected)


def test_alignment_loss_does_not_set_an_images_captions_against_each_other():
    image = F.normalize(torch.eye(3, 8), dim=-1)
    text = image[:, None].expand(-1, 5, -1)
    assert alignment_loss(image, text, torch.tensor(50.0)).item() == pytest.approx(0.0, abs=1e-6)
    nothing = alignment_loss(image, text, torch.tensor(0.0)).item()
    # Captions to 3 images; an image to its caption among the 10 captions of the others.
    assert nothing == pytest.approx((math.log(3) + math.log(11)) / 2, abs=1e-5)


def test_concept_loss_at_its_known_points():
    named = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert concept_loss(torch.zeros(2, 3), named, torch.ones(3)).item() == pytest.approx(6 * math.log(2) / 3)
    assert concept_loss(100 * (2 * named - 1), named, torch.ones(3)).item() == pytest.approx(0.0, abs=1e-6)
    assert concept_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3)).isfinite()
    ignored = torch.tensor([1.0, 0.0, 1.0])
    changed = torch.tensor([[0.0, 9.0, 0.0], [0.0, -9.0, 0.0]])
    assert concept_loss(changed, named, ignored) == concept_loss(torch.zeros(2, 3), named, ignored)
