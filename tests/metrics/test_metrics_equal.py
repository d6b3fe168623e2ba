"""The scores equal pycocoevalcap's own pipeline, tokenizer included."""

import random

import pytest

from fastcap.metrics import CaptionMetrics
from fastcap.metrics.java import ptb_tokenize
from fastcap.metrics.ngrams import CiderD, bleu, rouge_l

# pycocoevalcap 1.2's own output for the first three nasty captions, times 100
COMMITTED = {
    "bleu1": 62.499999996093756,
    "bleu2": 47.24555912298965,
    "bleu3": 33.38286287379896,
    "bleu4": 24.696913683618014,
    "rouge_l": 38.70126738701267,
    "cider": 112.43527876508695,
}


def score(captions, **options):
    return CaptionMetrics(**options).score(*captions)


def test_equals_pycocoevalcap(nasty, pycocoevalcap_scores):
    whole, each = pycocoevalcap_scores(nasty)
    metrics, images = score(nasty, tokenizer="ptb")
    assert metrics == pytest.approx(whole, abs=1e-6)
    assert list(images) == sorted(nasty.ids)
    for image_id, expected in zip(nasty.ids, each, strict=True):
        assert images[image_id] == pytest.approx(expected, abs=1e-6)


def test_committed_scores(nasty):
    """These three are tokenised alike by both tokenizers, so the check needs neither Java nor pycocoevalcap."""
    captions = nasty._replace(ids=nasty.ids[:3], candidates=nasty.candidates[:3], references=nasty.references[:3])
    result = score(captions, tokenizer="simple").metrics
    assert list(result) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    assert result == pytest.approx(COMMITTED, abs=1e-6)


def test_white_space_shifts_nothing(java):
    separators = ["\r", "\x0b", "\x0c", "\u2028", "\u2029", "\x85", "\n", "\r\n", "\x1c", "\t"]
    lines = [text.replace(" ", separator) for separator in separators for text in ("a dog runs ", "x", "two cats ")]
    assert ptb_tokenize(lines) == [*ptb_tokenize(["a dog runs", "x", "two cats"])] * len(separators)


def test_empty_captions_score_zero(java):
    captions, references = ["", " \n", "!"], [["A dog."], ["A cat.", "Cats."], ["Birds fly."]]
    metrics, images = CaptionMetrics(tokenizer="ptb").score([1, 2, 3], captions, references)
    assert all(set(each.values()) == {0.0} for each in (metrics, *images.values()))


def test_scorers_equal_pycocoevalcap_on_random_captions():
    their_bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    their_cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    their_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    draw = random.Random(0)
    for _ in range(60):
        words = ["a", "b", "c", "d", "one\u00a0two", "e"][: draw.randint(1, 6)]

        def caption(words=words):
            return " ".join(draw.choice(words) for _ in range(draw.randint(0, 9)))

        count = draw.randint(1, 6)
        candidates = [caption() for _ in range(count)]
        references = [["a", *(caption() for _ in range(draw.randint(0, 4)))] for _ in range(count)]
        gts, res = dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}
        words, known = [text.split() for text in candidates], [[t.split() for t in texts] for texts in references]
        mine, mine_each = bleu(words, known)
        whole, each = their_bleu.compute_score(gts, res, verbose=0)
        assert mine == pytest.approx(whole, abs=1e-9)
        assert [*zip(*mine_each, strict=True)] == [pytest.approx(order, abs=1e-9) for order in each]
        cider = CiderD(dict(enumerate(known)))(range(count), words)
        assert cider == pytest.approx(their_cider.compute_score(gts, res)[1], abs=1e-9)
        scores = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
        assert scores == pytest.approx(their_rouge.compute_score(gts, res)[1], abs=1e-9)
