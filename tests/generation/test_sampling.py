"""Captions drawn for rewards: the log-probabilities are true, gradients reach all, and rewards are learnt."""

import pytest
import torch

from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.generation.dlag import DynamicLengthPredictor
from fastcap.generation.icmr import ICMRDecoder
from fastcap.generation.ngrams import NGrams
from fastcap.losses import scst_loss
from fastcap.types import Sampled, SpecialTokens

SPECIAL = SpecialTokens(pad=0, mask=1, unk=2, bos=3, eos=4)
LONGEST, V = 6, 15
GENERATORS = {
    "icmr": ICMRDecoder(SPECIAL, num_steps=3),
    "icmr, lattice": ICMRDecoder(SPECIAL, num_steps=2, ngram_weights={"bigram": 0.5}),
}


NGRAMS = NGrams(V)
NGRAMS.count([[5, 6, 7], [7, 8], [7], [9, 10, 7, 7], [11, 12, 13, 14, 5]])


@pytest.fixture
def memory():
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def make():
    torch.manual_seed(0)
    decoder = MoEDecoder(V, LONGEST, SPECIAL.pad, dim=16, num_layers=2, num_experts=2, dropout=0.0)
    return decoder, DynamicLengthPredictor(16, LONGEST, dropout=0.0)


@pytest.mark.parametrize("name", GENERATORS)
def test_no_special_token_is_drawn_and_lengths_are_counted(name, memory):
    decoder, length = make()
    sampled = GENERATORS[name].sample(decoder, memory, length(memory), 20, ngrams=NGRAMS)
    inside = torch.arange(sampled.tokens.shape[1]) < sampled.lengths[:, None]
    assert not torch.isin(sampled.tokens[inside], torch.tensor(SPECIAL.ids)).any()
    assert (sampled.tokens[~inside] == SPECIAL.pad).all()
    assert sampled.tokens.shape[0] == 60 and (sampled.log_probability[~sampled.decided] == 0).all()
    assert len({tuple(row) for row in sampled.tokens.tolist()}) > 20


@pytest.mark.parametrize("name", GENERATORS)
def test_near_temperature_zero_sampling_is_generation(name, memory):
    decoder, _ = make()
    logits = torch.full((3, LONGEST), -100.0)
    logits[:, 4] = 100.0
    generator = GENERATORS[name]
    sampled = generator.sample(decoder, memory, logits, 2, temperature=1e-4, ngrams=NGRAMS)
    shown = generator.generate(decoder, memory, logits, NGRAMS, length_beam=1)
    for row in range(3):
        words = shown.tokens[row, : int(shown.lengths[row])].tolist()
        for place in (2 * row, 2 * row + 1):
            assert sampled.tokens[place, : int(sampled.lengths[place])].tolist() == words


def test_one_steps_log_probabilities_are_those_of_the_drawn_words(memory):
    decoder, length = make()
    sampled = ICMRDecoder(SPECIAL, 1).sample(decoder, memory, length(memory), 2)
    pad = torch.arange(sampled.tokens.shape[1]) >= sampled.lengths[:, None]
    logits = decoder(torch.full(pad.shape, SPECIAL.mask).masked_fill(pad, SPECIAL.pad), memory, pad).logits
    logits[..., list(SPECIAL.ids)] = -torch.inf
    expected = logits.log_softmax(-1).gather(2, sampled.tokens.unsqueeze(2)).squeeze(2).masked_fill(pad, 0.0)
    torch.testing.assert_close(sampled.log_probability, expected, atol=1e-5, rtol=1e-4)
    distribution = length(memory).log_softmax(-1).repeat_interleave(2, 0)
    torch.testing.assert_close(
        sampled.length_log_probability, distribution.gather(1, sampled.lengths[:, None] - 1).squeeze(1)
    )


def test_the_loss_prefers_what_scored_above_the_other_samples():
    log_probability = torch.zeros(4, 2, requires_grad=True)
    decided = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    lengths, of_lengths = torch.tensor([2, 1, 2, 2]), torch.zeros(4, requires_grad=True)
    sampled = Sampled(torch.zeros(4, 2), lengths, log_probability, decided, of_lengths)
    scst_loss(sampled, torch.tensor([[1.0, 0.0], [0.5, 0.5]])).backward()
    # Two captions of the first image differ by one; those of the second are alike and teach nothing.
    assert (11 * log_probability.grad).tolist() == [[-1, -1], [1, 0], [0, 0], [0, 0]]
    assert (11 * of_lengths.grad).tolist() == [-1, 1, 0, 0]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_reward_is_learnt(name, memory):
    """Rewarded for one word and for short captions, generation comes to write that word alone."""
    decoder, length = make()
    parameters = [*decoder.parameters(), *length.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    generator, wanted = GENERATORS[name], 7
    for step in range(60):
        torch.manual_seed(step)
        sampled = generator.sample(decoder, memory, length(memory), 8, ngrams=NGRAMS)
        reward = (sampled.tokens == wanted).sum(1) / sampled.lengths - 0.2 * sampled.lengths
        optimizer.zero_grad()
        scst_loss(sampled, reward.view(3, 8)).backward()
        optimizer.step()
    assert all(p.grad is not None for p in length.parameters()), "lengths are decisions too"
    result = generator.generate(decoder, memory, length(memory).detach(), NGRAMS)
    assert result.lengths.tolist() == [1, 1, 1]
    assert (result.tokens[:, 0] == wanted).all()
