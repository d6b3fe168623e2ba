"""Counts of three words in a row: worth by hand, ends, and checkpoints of any size."""

import itertools
import math

import pytest
import torch

from fastcap.decoder.bigrams import Bigrams
from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.decoder.trigrams import STRENGTH, Trigrams

V = 8
CAPTIONS = [[5, 6], [5, 6, 7], [7, 6], [5, 5], [5, 6, 7, 6], [6]]


def counted(captions=CAPTIONS):
    bigrams, trigrams = Bigrams(V), Trigrams(V)
    bigrams.count(captions)
    trigrams.count(captions, bigrams)
    return bigrams, trigrams


def probability(bigrams, before, after):
    everything = [word for caption in CAPTIONS for word in [*caption, V]]
    worth = float(bigrams(torch.tensor(before), torch.tensor(after)))
    return math.exp(worth) * everything.count(after) / len(everything)


def test_a_triple_is_worth_how_much_likelier_it_is_than_its_pair():
    bigrams, trigrams = counted()
    triples = [row for caption in CAPTIONS for row in zip([V, *caption[:-1]], caption, [*caption[1:], V], strict=True)]
    for first, second in itertools.product((5, 6, 7, V), (5, 6, 7)):
        following = [c for a, b, c in triples if (a, b) == (first, second)]
        expected = {}
        for third in (5, 6, 7, V):
            pair = probability(bigrams, second, third)
            share = (following.count(third) + STRENGTH * pair) / (len(following) + STRENGTH)
            found = float(trigrams(torch.tensor(first), torch.tensor(second), torch.tensor(third)))
            assert found == pytest.approx(math.log(share / pair), abs=1e-5)
            expected[third] = share
        assert sum(expected.values()) == pytest.approx(1, abs=1e-5)  # every word anyone wrote


def test_ends_are_counted_and_what_lies_beyond_them_is_worth_nothing():
    _, trigrams = counted()
    for three in ((V, V, 5), (5, V, V), (V, V, V), (6, V, 5)):
        assert float(trigrams(*map(torch.tensor, three))) == 0
    assert float(trigrams(torch.tensor(V), torch.tensor(6), torch.tensor(V))) > 0  # "6" alone is a caption


def test_indices_broadcast():
    _, trigrams = counted()
    words = torch.arange(V + 1)
    every = trigrams(words[:, None, None], words[:, None], words)
    assert every.shape == (V + 1,) * 3 and every.isfinite().all()
    assert float(every[5, 6, 7]) == float(trigrams(*map(torch.tensor, (5, 6, 7)))) > 0


def test_before_any_captions_are_counted_triples_are_worth_nothing():
    trigrams = Trigrams(V)
    trigrams.count([[], []], Bigrams(V))
    assert not trigrams.counted and trigrams(torch.tensor([5, V]), torch.tensor(6), torch.tensor(5)).tolist() == [0, 0]


def test_a_decoder_takes_over_tables_of_any_size_and_misses_none():
    bigrams, trigrams = counted()
    theirs, ours = (MoEDecoder(V, 6, 0, dim=16, num_layers=1, num_experts=1) for _ in range(2))
    theirs.bigrams.count(CAPTIONS)
    theirs.trigrams.count(CAPTIONS, bigrams)
    ours.trigrams.count([[5]], bigrams)
    ours.load_state_dict(theirs.state_dict())
    words = torch.arange(V + 1)
    every = words[:, None, None], words[:, None], words
    torch.testing.assert_close(ours.trigrams(*every), trigrams(*every))
    older = {name: value for name, value in theirs.state_dict().items() if not name.startswith("trigrams.")}
    fresh = MoEDecoder(V, 6, 0, dim=16, num_layers=1, num_experts=1)
    fresh.load_state_dict(older)
    assert not fresh.trigrams.counted and fresh.bigrams.counted
    assert not [name for name, _ in fresh.named_parameters() if "trigrams" in name]
