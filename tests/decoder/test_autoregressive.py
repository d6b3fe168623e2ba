"""The autoregressive baseline: causal, its cache exact, greedy and beam search true to their definitions."""

import itertools

import pytest
import torch

from fastcap.build import ConfigError, build_model
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.decoder.autoregressive import AutoregressiveDecoder
from fastcap.generation.beam import BeamSearch
from fastcap.losses import shift_right
from fastcap.types import SpecialTokens
from tests.tiny import tiny_config

SPECIAL = SpecialTokens(pad=0, unk=1, bos=2, eos=3, mask=4)
V, LONGEST = 9, 4


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = AutoregressiveDecoder(V, LONGEST, SPECIAL.pad, dim=16, num_layers=2, num_experts=2).eval()
    torch.nn.init.normal_(decoder.head_bias)  # untrained logits are too even to tell candidates apart
    decoder.word.weight.data *= 3
    return decoder.requires_grad_(False)


@pytest.fixture
def memory():
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))


def test_a_word_depends_on_no_later_word(decoder, memory):
    tokens = torch.randint(5, V, (6, 5))
    cache = decoder.prepare(memory)
    logits, _ = decoder.predict(tokens, cache)
    changed = tokens.clone()
    changed[:, 3:] = 5
    again, _ = decoder.predict(changed, cache)
    torch.testing.assert_close(again[:, :3], logits[:, :3])
    assert not torch.allclose(again[:, 3:], logits[:, 3:])


def test_the_cache_changes_nothing(decoder, memory):
    tokens = torch.randint(5, V, (6, 5))
    cache = decoder.prepare(memory)
    whole, _ = decoder.predict(tokens, cache)
    past, steps = None, []
    for at in range(5):
        logits, past = decoder.predict(tokens[:, at : at + 1], cache, past)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def _log_probability(decoder, cache, words, ended):
    """Sum of log-probabilities of a caption, with the generator's ban of special tokens, and the count of factors."""
    tokens = torch.tensor([[SPECIAL.bos, *words]])
    logits = decoder.predict(tokens, cache)[0][0].double()
    total = 0.0
    targets = [*words, SPECIAL.eos] if ended else words
    for at, target in enumerate(targets):
        allowed = [*range(5, V)] if at == 0 else [SPECIAL.eos] if at == LONGEST else [SPECIAL.eos, *range(5, V)]
        total += float(logits[at, target] - logits[at, allowed].logsumexp(0))
    return total


def test_greedy_takes_the_likeliest_word_each_time(decoder, memory):
    result = BeamSearch(SPECIAL).generate(decoder, memory, torch.zeros(3, LONGEST))
    for row in range(3):
        cache, words = decoder.prepare(memory[row : row + 1]), []
        while len(words) < LONGEST:
            logits = decoder.predict(torch.tensor([[SPECIAL.bos, *words]]), cache)[0][0, -1]
            allowed = [*range(5, V)] if not words else [SPECIAL.eos, *range(5, V)]
            word = max(allowed, key=lambda w: float(logits[w]))
            if word == SPECIAL.eos:
                break
            words.append(word)
        assert result.tokens[row, : int(result.lengths[row])].tolist() == words
        expected = _log_probability(decoder, cache, words, True) / (len(words) + 1)
        assert float(result.scores[row]) == pytest.approx(expected, abs=1e-4)


def test_enough_beams_find_the_best_caption_of_all(decoder, memory):
    words = range(5, V)
    captions = [c for n in range(1, LONGEST + 1) for c in itertools.product(words, repeat=n)]
    result = BeamSearch(SPECIAL, num_beams=400).generate(decoder, memory[:1], torch.zeros(1, LONGEST))
    cache = decoder.prepare(memory[:1])
    scored = {c: _log_probability(decoder, cache, list(c), True) / (len(c) + 1) for c in captions}
    best = max(scored, key=scored.__getitem__)
    assert float(result.scores[0]) == pytest.approx(scored[best], abs=1e-4)
    assert tuple(result.tokens[0, : int(result.lengths[0])].tolist()) == best


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_caption_does_not_depend_on_its_batch(decoder, memory, num_beams):
    generator = BeamSearch(SPECIAL, num_beams)
    together = generator.generate(decoder, memory, torch.zeros(3, LONGEST))
    for row in range(3):
        alone = generator.generate(decoder, memory[row : row + 1], torch.zeros(1, LONGEST))
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[row])


def test_teacher_forcing_shows_each_word_after_it_was_asked_for():
    tokens = torch.tensor([[5, 6, 7], [8, 0, 0]])
    shown, targets, scored = shift_right(tokens, torch.tensor([3, 1]), SPECIAL)
    assert shown.tolist() == [[2, 5, 6, 7], [2, 8, 0, 0]]
    assert targets.tolist() == [[5, 6, 7, 3], [8, 3, 0, 0]]
    assert scored.tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("overrides", [["decoder=autoregressive_mini"], ["refinement=greedy"]])
def test_a_decoder_and_a_generator_that_do_not_fit_are_refused(overrides):
    tokenizer = train_word_tokenizer(["a red square"], min_frequency=1)
    with pytest.raises(ConfigError, match=r"choose refinement="):
        build_model(tiny_config(*overrides), tokenizer)
