"""The project's laws: train what you ship, and let no caption leak into what is decoded."""

import pytest
import torch

from fastcap.backbone.efficientnet_lite import load_packaged
from fastcap.backbone.timm_encoder import create_net
from fastcap.build import build_datamodule, build_module
from fastcap.optim import parameter_groups
from tests.tiny import tiny_config

DECODERS = {
    "moe_top1": [],
    "moe_top2": ["decoder.top_k=2"],
    "dense": ["decoder.num_experts=1"],
}


@pytest.fixture(params=DECODERS.values(), ids=DECODERS)
def system(request):
    torch.manual_seed(0)
    cfg = tiny_config(*request.param)
    datamodule = build_datamodule(cfg)
    module = build_module(cfg, datamodule)
    datamodule.setup("fit")
    return module, next(iter(datamodule.train_dataloader()))


def _used_parameters(module, batch):
    """Parameters that generating captions reads, found by watching every operation's inputs."""
    by_storage = {p.untyped_storage().data_ptr(): name for name, p in module.model.named_parameters()}
    used = set()

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            leaves = torch.utils._pytree.tree_leaves((args, kwargs or {}))
            # Properties and shape queries read no values.
            if getattr(function, "__name__", "") not in ("__get__", "size", "dim"):
                used.update(
                    by_storage.get(leaf.untyped_storage().data_ptr())
                    for leaf in leaves
                    if isinstance(leaf, torch.nn.Parameter)
                )
            return function(*args, **(kwargs or {}))

    with Watch():
        module.model(batch.images)
    return used - {None}


def test_ships_only_what_was_trained(system):
    module, batch = system
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    losses["total"].backward()
    trained = {name for name, p in module.model.named_parameters() if p.grad is not None}
    used = _used_parameters(module.eval(), batch)
    assert len(used) > 20, "the watch saw next to nothing"
    assert {"decoder.word.weight", "length.head.4.weight", "alignment.projection.weight"} <= used
    assert used <= trained
    assert not [
        name
        for name in used
        if name.startswith(("alignment.text_encoder", "alignment.image_head", "alignment.concepts"))
    ]


def test_every_parameter_gets_a_gradient(system):
    module, batch = system
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    losses["total"].backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None]


def test_a_frozen_pretrained_encoder_is_the_one_exception():
    """With `backbone=efficientnet_lite0`, what generation reads untrained is `backbone.net`, trained on ImageNet."""
    cfg = tiny_config("backbone=efficientnet_lite0", "data.image_size=64")
    datamodule = build_datamodule(cfg)
    module = build_module(cfg, datamodule)
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    losses, _ = module.losses(batch, torch.Generator().manual_seed(0))
    losses["total"].backward()
    untrained = {name for name, p in module.model.named_parameters() if p.grad is None}
    assert untrained == {name for name, _ in module.model.named_parameters() if name.startswith("backbone.net.")}
    given = create_net("tf_efficientnet_lite0")
    load_packaged(given, 0)
    for name, p in given.named_parameters():
        assert name.startswith("classifier.") or torch.equal(p, module.model.backbone.net.get_parameter(name))
    groups = parameter_groups(module.model, 0.1)
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_refinement_drives_the_trained_decoder_itself(system):
    module, batch = system
    seen, decoder = [], module.model.decoder
    original = decoder.denoise
    decoder.denoise = lambda *args: seen.append(1) or original(*args)
    module.eval().model(batch.images)
    assert len(seen) == module.model.refinement.num_steps
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in module.model.parameters())


def test_captions_do_not_leak(system):
    """Another caption, same image and same masked input: the logits do not move by one bit."""
    module, batch = system
    module.eval()
    seen = []
    decoder = module.model.decoder
    original = decoder.denoise
    decoder.denoise = lambda tokens, pad, cache: seen.append(original(masked(tokens), pad, cache)) or seen[-1]

    def masked(tokens):
        return tokens.masked_fill(tokens != module.special.pad, module.special.mask)

    with torch.no_grad():
        module.losses(batch, torch.Generator().manual_seed(0))
        inside = batch.tokens != module.special.pad
        other = (batch.tokens + 7) % 40 + 5
        batch.tokens = torch.where(inside, other, batch.tokens)
        module.losses(batch, torch.Generator().manual_seed(0))
    assert torch.equal(*seen)


def test_images_do_reach_the_decoder(system):
    """The leak test would pass if the decoder saw nothing: it sees the image."""
    module, batch = system
    module.eval()
    memory = module.model.encode(batch.images)
    pad = torch.zeros(len(batch), 6, dtype=torch.bool)
    tokens = torch.full((len(batch), 6), module.special.mask)
    logits = module.model.decoder(tokens, memory, pad).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)


def test_two_images_are_captioned_as_each_alone(system):
    module, batch = system
    model = module.model.double().eval()
    together = model(batch.images[:2])
    for i in range(2):
        alone = model(batch.images[i : i + 1])
        length = int(alone.lengths)
        assert int(together.lengths[i]) == length
        assert torch.equal(alone.tokens[0, :length], together.tokens[i, :length])
