"""Principal components of frozen features: what they are, and that no step of training or loading loses them."""

import pytest
import torch

from fastcap.backbone.components import PrincipalComponents
from fastcap.backbone.concat_encoder import ConcatEncoder
from fastcap.backbone.timm_encoder import TimmEncoder

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def _features(images=60, channels=12, seed=0):
    """Correlated channels of very different scales and means, one of them constant. (images, 3, 3, channels)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(images * 9, 5, generator=generator) @ torch.randn(5, channels, generator=generator)
    mixed = mixed + 0.1 * torch.randn(images * 9, channels, generator=generator)
    mixed = mixed * torch.logspace(-2, 2, channels) + torch.linspace(-3, 3, channels)
    mixed[:, 4] = 2.5
    return mixed.unflatten(0, (images, 3, 3))


def test_components_are_those_of_a_singular_value_decomposition():
    features = _features()
    components = PrincipalComponents(12, 4)
    components.fit(features.split(7))
    rows = features.flatten(0, 2).double()
    rows = rows - rows.mean(0)
    spread = rows.std(0, correction=0)
    rows = rows / torch.where(spread > 1e-6, spread, 1.0)
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    found = components(features).flatten(0, 2).double()
    expected = left[:, :4] * values[:4]
    scale = values[:4].div(len(rows) ** 0.5).mean()
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found, signs * expected / scale, rtol=1e-3, atol=1e-3)
    assert found.mean(0).abs().max() < 1e-3
    assert components.fitted and not any(p.requires_grad for p in components.parameters())


def test_what_varies_together_is_kept_and_noise_dropped():
    """Five causes behind twelve channels: five components give the channels back, three do not."""
    features = _features()

    def unexplained(number):
        components = PrincipalComponents(12, number)
        components.fit([features])
        inside = components(features).flatten(0, 2)
        rows = features.flatten(0, 2)
        rows = (rows - rows.mean(0)) / rows.std(0).clamp(min=1e-6)
        solved = torch.linalg.lstsq(inside, rows).solution
        return (rows - inside @ solved).square().mean()

    assert unexplained(5) < 0.02 < 0.05 < unexplained(3)


def test_fits_do_not_depend_on_the_order_and_split_of_images():
    features, first, second = _features(), PrincipalComponents(12, 3), PrincipalComponents(12, 3)
    first.fit([features])
    second.fit(features.flip(0).split(11))
    torch.testing.assert_close(first(features), second(features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [lambda **o: TimmEncoder("resnet18", frozen=True, position=False, **o), None])
def test_an_encoder_gives_the_components_of_all_its_channels(make):
    if make is None:

        def make(**options):
            parts = [TimmEncoder("resnet18", frozen=True, position=False) for _ in range(2)]
            return ConcatEncoder(parts, position=False, **options)

    encoder = make(components=6)
    assert encoder(IMAGES).shape == (2, 6, 6) and encoder.feature_dim == 6
    before = encoder(IMAGES)
    encoder.components.fit([encoder.full_map(IMAGES)])
    after = encoder(IMAGES)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, encoder.components(encoder.full_map(IMAGES)).flatten(1, 2))
    fresh = make(components=6)
    fresh.load_state_dict(encoder.state_dict())
    assert fresh.components.fitted
    torch.testing.assert_close(fresh(IMAGES), after)


def test_components_of_another_size_are_not_taken_for_fitted():
    """A start from a checkpoint takes what fits: the flag has every model's shape, the components have not."""
    features, fitted, wider = _features(), PrincipalComponents(12, 3), PrincipalComponents(12, 4)
    fitted.fit([features])
    fitting = {k: v for k, v in fitted.state_dict().items() if wider.state_dict()[k].shape == v.shape}
    assert "fitted" in fitting
    wider.load_state_dict(fitting, strict=False)
    assert not wider.fitted
    same = PrincipalComponents(12, 3)
    same.load_state_dict(fitted.state_dict())
    assert same.fitted


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"backbone\.components = 13 must lie between 1 and 12"):
        PrincipalComponents(12, 13)
    with pytest.raises(ValueError, match=r"backbone\.components = 4 needs a frozen encoder"):
        TimmEncoder("resnet18", components=4)
