"""The n-gram language model: scores by hand, boundaries, the exported search, and checkpoints of any size."""

import itertools
import math

import onnxruntime
import pytest
import torch

from fastcap.generation import ngrams as module
from fastcap.generation.ngrams import BIGRAM_PRIOR, TRIGRAM_PRIOR, NGrams, find
from fastcap.serving.onnx_edits import look_up

V = 8
CAPTIONS = [[5, 6], [5, 6, 7], [7, 6], [5, 5], [5, 6, 7, 6], [6]]
EVERYTHING = [word for caption in CAPTIONS for word in [*caption, V]]
HALF = 2e-3  # scores are kept in 16 bits


def counted(captions=CAPTIONS):
    ngrams = NGrams(V)
    ngrams.count(captions)
    return ngrams


def bigram(ngrams, before, after):
    before, after = torch.as_tensor(before), torch.as_tensor(after)
    return ngrams.bigram(before, ngrams.find(before, after))


def trigram(ngrams, first, second, third):
    first, second, third = map(torch.as_tensor, (first, second, third))
    return ngrams.trigram(ngrams.find(first, second), third)


def smoothed(before, after):
    """P(after | before) with its prior, by hand."""
    following = [b for caption in CAPTIONS for a, b in itertools.pairwise([V, *caption, V]) if a == before]
    share = EVERYTHING.count(after) / len(EVERYTHING)
    return (following.count(after) + BIGRAM_PRIOR * share) / (len(following) + BIGRAM_PRIOR)


def test_a_bigram_scores_its_pointwise_mutual_information():
    ngrams = counted()
    for before, after in itertools.product((5, 6, 7, V), (5, 6, 7, V)):
        if (before, after) != (V, V):
            expected = math.log(smoothed(before, after) / (EVERYTHING.count(after) / len(EVERYTHING)))
            assert float(bigram(ngrams, before, after)) == pytest.approx(expected, abs=HALF)
    assert float(bigram(ngrams, 4, 6)) == 0  # a word that nobody wrote tells nothing of the next one


def test_a_trigram_scores_how_much_likelier_it_is_than_its_bigram():
    ngrams = counted()
    triples = [row for c in CAPTIONS for row in zip([V, *c[:-1]], c, [*c[1:], V], strict=True)]
    for first, second in itertools.product((5, 6, 7, V), (5, 6, 7)):
        following = [c for a, b, c in triples if (a, b) == (first, second)]
        total = 0.0
        for third in (5, 6, 7, V):
            shorter = smoothed(second, third)
            share = (following.count(third) + TRIGRAM_PRIOR * shorter) / (len(following) + TRIGRAM_PRIOR)
            expected = math.log(share / shorter) if following else 0.0
            assert float(trigram(ngrams, first, second, third)) == pytest.approx(expected, abs=HALF)
            total += share
        assert total == pytest.approx(1)


def test_what_lies_beyond_an_end_scores_nothing():
    ngrams = counted()
    assert float(bigram(ngrams, V, V)) == 0
    for three in ((V, V, 5), (5, V, V), (V, V, V), (6, V, 5)):
        assert float(trigram(ngrams, *three)) == 0
    assert float(trigram(ngrams, V, 6, V)) > 0  # "6" alone is a caption


def test_captions_with_unseen_bigrams():
    tokens = torch.tensor([[5, 6, 0, 0], [6, 5, 0, 0], [7, 0, 0, 0], [5, 6, 7, 6], [5, 0, 6, 6]])
    # "6 5" was never written; a caption of "7" alone has an end that was not, which does not count.
    found = counted().unseen(tokens, torch.tensor([2, 2, 1, 4, 1]))
    assert found.tolist() == [False, True, False, False, False]


def test_the_rarest_trigrams_are_dropped_where_there_are_too_many(monkeypatch):
    whole = counted()
    monkeypatch.setattr(module, "MAX_TRIGRAMS", 3)
    ngrams = counted()
    assert len(whole.trigrams) > len(ngrams.trigrams) == 3 and (ngrams.trigrams.diff() > 0).all()
    assert float(trigram(ngrams, V, 5, 6)) == float(trigram(whole, V, 5, 6)) > 0  # the most frequent


class Finder(torch.nn.Module):
    """Looks ids up in tables of several sizes."""

    def __init__(self, *sizes):
        super().__init__()
        for size in sizes:
            self.register_buffer(f"table_{size}", torch.arange(size, dtype=torch.int32) * 3 + 1)

    def forward(self, wanted):
        return torch.stack([find(table, wanted) for table in self.buffers()])


def test_the_search_that_is_exported_finds_the_same():
    finder, wanted = Finder(1, 2, 3, 8, 100), torch.arange(-2, 305).view(-1, 1)
    places = finder(wanted)
    assert (places >= 0).sum((1, 2)).tolist() == [1, 2, 3, 8, 100]
    for table, place in zip(finder.buffers(), places, strict=True):
        assert torch.equal(table[place[place >= 0]], wanted[place >= 0])
    program = torch.onnx.export(finder, (wanted,), dynamo=True, verbose=False, optimize=False)
    look_up(program.model.graph)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (exported,) = session.run(None, {session.get_inputs()[0].name: wanted.numpy()})
    assert torch.equal(torch.from_numpy(exported), places)
