"""Counts of neighbours: worth by hand, boundaries, and checkpoints of any size."""

import math

import pytest
import torch

from fastcap.decoder.bigrams import SMOOTHING, Bigrams
from fastcap.decoder.moe_decoder import MoEDecoder

V = 8
CAPTIONS = [[5, 6], [5, 6, 7], [7, 6], [5, 5]]


@pytest.fixture
def bigrams():
    found = Bigrams(V)
    found.count(CAPTIONS)
    return found


def test_a_pair_is_worth_how_much_likelier_it_is_than_its_second_word(bigrams):
    # Thirteen transitions: of four captions, each with its words and its end.
    after_5 = [6, 6, 5, V]
    everything = [5, 6, V, 5, 6, 7, V, 7, 6, V, 5, 5, V]
    for word in (5, 6, 7, V):
        share = everything.count(word) / len(everything)
        smoothed = (after_5.count(word) + SMOOTHING * share) / (len(after_5) + SMOOTHING)
        found = float(bigrams(torch.tensor(5), torch.tensor(word)))
        assert found == pytest.approx(math.log(smoothed / share), abs=1e-6)
    # A word that nobody wrote tells nothing of the next one.
    assert float(bigrams(torch.tensor(4), torch.tensor(6))) == 0


def test_what_lies_beyond_the_end_is_worth_nothing(bigrams):
    assert float(bigrams(torch.tensor(V), torch.tensor(V))) == 0


def test_captions_with_neighbours_that_nobody_wrote_are_strange(bigrams):
    tokens = torch.tensor([[5, 6, 0, 0], [6, 5, 0, 0], [6, 0, 0, 0], [5, 6, 7, 6], [5, 0, 6, 6]])
    # "6" and "6 5": nobody began with 6; an end where nobody ended is not counted.
    found = bigrams.strange(tokens, torch.tensor([2, 2, 1, 4, 1]))
    assert found.tolist() == [False, True, True, False, False]


def test_before_any_captions_are_counted_pairs_are_worth_nothing():
    bigrams = Bigrams(V)
    assert not bigrams.counted and bigrams(torch.tensor([5, V]), torch.tensor([6, 5])).tolist() == [0, 0]
    bigrams.count([[], [5]])
    assert bigrams.counted


def test_counting_again_replaces_what_was_counted(bigrams):
    bigrams.count([[7, 7, 7]])
    again = Bigrams(V)
    again.count([[7, 7, 7]])
    assert torch.equal(bigrams.pairs, again.pairs) and torch.equal(bigrams.worth, again.worth)


def test_a_decoder_takes_over_tables_of_any_size_and_misses_none(bigrams):
    theirs, ours = (MoEDecoder(V, 6, 0, dim=16, num_layers=1, num_experts=1) for _ in range(2))
    theirs.bigrams.count(CAPTIONS)
    ours.bigrams.count([[5]])
    ours.load_state_dict(theirs.state_dict())
    before, after = torch.arange(V + 1).repeat_interleave(V + 1), torch.arange(V + 1).repeat(V + 1)
    torch.testing.assert_close(ours.bigrams(before, after), bigrams(before, after))
    # From before there were any.
    older = {name: value for name, value in theirs.state_dict().items() if not name.startswith("bigrams.")}
    fresh = MoEDecoder(V, 6, 0, dim=16, num_layers=1, num_experts=1)
    fresh.load_state_dict(older)
    assert not fresh.bigrams.counted
    ours.bigrams.count([[5]])
    ours.load_state_dict(older)
    assert len(ours.bigrams.pairs) == 3  # its own: start, end, and what follows that
    assert not [name for name, _ in fresh.named_parameters() if "bigrams" in name]
