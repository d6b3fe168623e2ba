import pytest
import torch

from fastcap.decoder.attention import RankAugmentedSelfAttention, SoftmaxCrossAttention
from fastcap.decoder.moe import Expert
from fastcap.decoder.moe_decoder import MoEDecoder


def _decoder(**settings):
    torch.manual_seed(0)
    return MoEDecoder(vocab_size=30, max_length=12, pad_id=0, dim=16, num_layers=2, **{"dropout": 0.0} | settings)


def _captions(batch=6, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 30, (batch, length), generator=generator)
    lengths = torch.randint(2, length + 1, (batch,), generator=generator)
    pad = torch.arange(length) >= lengths[:, None]
    return tokens.masked_fill(pad, 0), pad


KINDS = [
    {},
    {"top_k": 2},
    {"self_attention": RankAugmentedSelfAttention},
    {"expert": lambda dim: Expert(dim, cross_attention=SoftmaxCrossAttention)},
]


def test_one_expert_is_the_dense_decoder():
    decoder = _decoder(num_experts=1).double()
    tokens, pad = _captions()
    memory = torch.randn(6, 7, 16).double()
    x = 4 * decoder.word(tokens) + decoder.from_start.weight[:9] + decoder.context(memory.mean(1, keepdim=True))
    x = x + decoder.from_end((((~pad).sum(1, keepdim=True)) - 1 - torch.arange(9)).clamp(min=0))
    for layer in decoder.layers:
        expert = layer.mixture.experts[0]
        x = x + layer.self_attention(layer.norm(x), pad)
        x = x + expert.cross_attention(expert.cross_norm(x), expert.cross_attention.prepare(memory))
        x = x + expert.ffn(expert.ffn_norm(x))
    dense = decoder.norm(x) @ decoder.word.weight.T + decoder.head_bias
    output = decoder(tokens, memory, pad)
    torch.testing.assert_close(output.logits, dense)
    assert output.aux_loss.item() == 0.0


@pytest.mark.parametrize("settings", KINDS)
def test_padding_and_company_change_nothing(settings):
    decoder = _decoder(**settings).double().eval()
    tokens, pad = _captions()
    memory = torch.randn(6, 7, 16).double()
    together = decoder(tokens, memory, pad).logits
    for i, length in enumerate((~pad).sum(1).tolist()):
        alone = decoder(tokens[i : i + 1, :length], memory[i : i + 1], pad[i : i + 1, :length]).logits
        torch.testing.assert_close(together[i, :length], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", KINDS)
def test_no_padding_is_told_by_none(settings):
    decoder, memory = _decoder(**settings).double(), torch.randn(3, 7, 16).double()
    tokens, _ = _captions()
    tokens = tokens.clamp(min=5)
    cache = decoder.prepare(memory)
    expected = decoder.denoise(tokens, torch.zeros_like(tokens, dtype=torch.bool), cache)
    torch.testing.assert_close(decoder.denoise(tokens, None, cache), expected)


@pytest.mark.parametrize("settings", KINDS)
def test_cached_equals_recomputed(settings):
    decoder = _decoder(**settings).double().eval()
    memory = torch.randn(3, 7, 16).double()
    cache = decoder.prepare(memory)
    for seed in range(3):
        tokens, pad = _captions(seed=seed)
        assert torch.equal(decoder.denoise(tokens, pad, cache), decoder(tokens, memory, pad).logits)


@pytest.mark.parametrize("settings", KINDS)
def test_every_parameter_gets_a_gradient(settings):
    decoder = _decoder(**settings)
    tokens, pad = _captions(batch=24)
    output = decoder(tokens, 3 * torch.randn(24, 7, 16), pad)
    (output.logits.square().sum() + output.aux_loss).backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None]
