"""Words chosen together: the best of all ways, and ways drawn by their probability."""

import itertools

import pytest
import torch

from fastcap.generation.crf import CRF, Draft, NGramWeights, Transitions
from fastcap.generation.ngrams import NGrams

V, LONGEST, PAD, MASK = 6, 4, 0, 1


class Table:
    """Bigrams and trigrams of any score; none goes over an end."""

    boundary = V

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.two = torch.randn(V + 1, V + 1, generator=generator)
        self.three = torch.randn(V + 1, V + 1, V + 1, generator=generator)
        self.two[V, V] = 0.0
        self.three[:, V] = 0.0

    def find(self, before, after):
        return before * (V + 1) + after

    def bigram(self, before, found):
        return self.two.flatten()[found]

    def trigram(self, found, third):
        return self.three.flatten(0, 1)[found, third].where(found >= 0, 0.0)

    def score(self, words, weights):
        words = [V, *words, V]
        total = weights.bigram * sum(float(self.two[pair]) for pair in itertools.pairwise(words))
        triples = zip(words, words[1:], words[2:], strict=False)
        return total + weights.trigram * sum(float(self.three[triple]) for triple in triples)


def drafts():
    """Logits and drafts of lengths 4, 1 and 3, some words of which stand already."""
    logits = 2 * torch.randn(3, LONGEST, V, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[MASK] * 4, [MASK, PAD, PAD, PAD], [MASK, 5, MASK, PAD]])
    return logits, Draft(tokens, tokens == MASK, tokens == PAD)


def linked(bigram, trigram=0.0):
    return Transitions(Table(), NGramWeights(bigram, trigram))


def worth(transitions, words):
    """The score of a caption beyond its words, added up n-gram by n-gram."""
    return transitions.ngrams.score(words, transitions.weights)


def ways(logits, draft, links, row, k=V):
    """Every caption that a draft may become, with its sum."""
    log_probability = logits[row].log_softmax(-1)
    length = int((~draft.pad[row]).sum())
    choices = [
        log_probability[t].topk(k).indices.tolist() if draft.hidden[row, t] else [int(draft.tokens[row, t])]
        for t in range(length)
    ]
    found = {}
    for words in itertools.product(*choices):
        own = sum(float(log_probability[t, w]) for t, w in enumerate(words) if draft.hidden[row, t])
        found[words] = own + worth(links, words)
    return found


@pytest.mark.parametrize("k", [2, V, 9])
@pytest.mark.parametrize(("weight", "second"), [(0.0, 0.0), (0.5, 0.0), (0.0, 1.0), (2.0, 5.0)])
def test_the_best_way_is_the_best_of_all(weight, second, k):
    (logits, draft), links = drafts(), linked(weight, second)
    words, value, decision, together = CRF(links, k)(logits, draft)
    for row, length in enumerate((4, 1, 3)):
        found = ways(logits, draft, links, row, min(k, V))
        best = tuple(words[row, :length].tolist())
        assert best == max(found, key=found.__getitem__)
        assert float(together[row]) == pytest.approx(worth(links, best), abs=1e-4)
        for t in range(length):
            if draft.hidden[row, t]:
                expected = logits[row, t].log_softmax(-1)[words[row, t]]
                assert float(value[row, t]) == pytest.approx(float(expected), abs=1e-5)
    assert torch.equal(value, decision)


@pytest.mark.parametrize("k", [2, V])
@pytest.mark.parametrize("second", [0.0, 1.0])
def test_several_ways_are_the_best_of_all_each_once(second, k):
    (logits, draft), links, number = drafts(), linked(0.5, second), 5
    words, value, _, together = CRF(links, k)(logits, draft, number)
    for row, length in enumerate((4, 1, 3)):
        found = ways(logits, draft, links, row, k)
        best = sorted(found, key=found.__getitem__, reverse=True)[:number]
        rows = slice(row * number, row * number + len(best))
        assert [tuple(way) for way in words[rows, :length].tolist()] == best
        assert together[rows].tolist() == pytest.approx([worth(links, way) for way in best], abs=1e-4)
        missing = slice(row * number + len(best), (row + 1) * number)
        assert ((value.sum(1) + together)[missing] < -1e8).all(), "fewer ways than asked for"


def test_counted_tables_count_from_the_start_to_the_end_and_no_padding():
    ngrams, weights = NGrams(V), NGramWeights(0.5, 0.7)
    ngrams.count([[5, 2, 3], [2, 3, 4, 5], [3]])
    logits, draft = drafts()
    words, _, _, together = CRF(Transitions(ngrams, weights), V)(logits, draft)
    for row, length in enumerate((4, 1, 3)):
        whole = torch.tensor([V, *words[row, :length].tolist(), V])
        found = ngrams.find(whole[:-1], whole[1:])
        bigrams, trigrams = ngrams.bigram(whole[:-1], found).sum(), ngrams.trigram(found[:-1], whole[2:]).sum()
        assert float(together[row]) == pytest.approx(float(0.5 * bigrams + 0.7 * trigrams), abs=1e-4)


@pytest.mark.parametrize("second", [0.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_ways_are_drawn_by_their_probability_and_say_it(temperature, second):
    (logits, draft), links = drafts(), linked(0.7, second)
    torch.manual_seed(0)
    number = 4000
    many = Draft(*(t.repeat_interleave(number, 0) for t in draft))
    logits.requires_grad_()
    words, _, decision, _ = CRF(links, V, temperature)(logits.repeat_interleave(number, 0), many)
    assert (decision[~many.hidden] == 0).all()
    for row, length in enumerate((4, 1, 3)):
        found = ways(logits.detach(), draft, links, row)
        sums = torch.tensor(list(found.values())) / temperature
        probability = dict(zip(found, sums.softmax(0).tolist(), strict=True))
        drawn = [tuple(r) for r in words[row * number : (row + 1) * number, :length].tolist()]
        for place in range(0, number, 400):
            expected = torch.tensor(probability[drawn[place]]).log()
            torch.testing.assert_close(decision[row * number + place].sum(), expected, atol=1e-4, rtol=1e-4)
        for way, share in sorted(probability.items(), key=lambda item: -item[1])[:5]:
            assert drawn.count(way) / number == pytest.approx(share, abs=0.03)
    decision.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_the_gradient_of_a_ways_log_probability_is_true():
    logits, draft = drafts()
    table, logits = Table(), logits.double()
    table.two = table.two.double()

    def log_probability(logits):
        torch.manual_seed(3)
        return CRF(Transitions(table, NGramWeights(0.7)), V, 1.0)(logits, draft)[2].sum()

    step = 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    leaf = logits.clone().requires_grad_()
    log_probability(leaf).backward()
    change = log_probability(logits + step) - log_probability(logits - step)
    assert float(change) == pytest.approx(2 * float((leaf.grad * step).sum()), rel=1e-4)
