"""The scores equal pycocoevalcap's own pipeline, tokenizer included."""

import random

import pytest

from fastcap.metrics import CaptionMetrics
from fastcap.metrics.ngrams import ReferenceIndex
from fastcap.metrics.rouge import lcs_length, rouge_l

# pycocoevalcap 1.2's own output for the first three nasty captions, times 100
COMMITTED = {
    "bleu1": 62.499999996093756,
    "bleu2": 47.24555912298965,
    "bleu3": 33.38286287379896,
    "bleu4": 24.696913683618014,
    "rouge_l": 38.70126738701267,
    "cider": 112.43527876508695,
}


def score(captions, batch=5, **options):
    metric = CaptionMetrics(**options)
    for start in range(0, len(captions.ids), batch):
        metric.update(*(column[start : start + batch] for column in captions))
    return metric


@pytest.mark.parametrize("which", ["nasty", "flickr8k"])
def test_equals_pycocoevalcap(which, request, pycocoevalcap_scores):
    captions = request.getfixturevalue(which)
    whole, each = pycocoevalcap_scores(captions)
    metric = score(captions, tokenizer="ptb")
    assert metric.compute() == pytest.approx(whole, abs=1e-6)
    assert metric.tokenizer_name == "ptb"
    per_image = metric.compute_per_image()
    assert list(per_image) == sorted(captions.ids)
    for image_id, expected in zip(captions.ids, each, strict=True):
        assert per_image[image_id] == pytest.approx(expected, abs=1e-6)


def test_committed_scores(nasty):
    """These three are tokenised alike by both tokenizers, so the check needs neither Java nor pycocoevalcap."""
    captions = nasty._replace(ids=nasty.ids[:3], candidates=nasty.candidates[:3], references=nasty.references[:3])
    result = score(captions, tokenizer="simple").compute()
    assert list(result) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    assert result == pytest.approx(COMMITTED, abs=1e-6)


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\u2028", "\u2029", "\x85", "\n", "\r\n", "\x1c", "\t"])
def test_white_space_shifts_nothing(separator, nasty, pycocoevalcap_scores):
    clean = nasty._replace(candidates=["a dog runs", *nasty.candidates[1:9], "x", *nasty.candidates[10:]])
    dirty = clean._replace(
        candidates=[f"a{separator}dog{separator}runs{separator}", *clean.candidates[1:]],
        references=[[text.replace(" ", separator) for text in clean.references[0]], *clean.references[1:]],
    )
    assert score(dirty, tokenizer="ptb").compute() == score(clean, tokenizer="ptb").compute()


def test_empty_captions_score_zero(java):
    metric = CaptionMetrics(tokenizer="ptb")
    metric.update([1, 2, 3], ["", " \n", "!"], [["A dog."], ["A cat.", "Cats."], ["Birds fly."]])
    assert set(metric.compute().values()) == {0.0}
    assert all(set(each.values()) == {0.0} for each in metric.compute_per_image().values())


def test_scorers_equal_pycocoevalcap_on_random_captions():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    draw = random.Random(0)
    for _ in range(150):
        words = ["a", "b", "c", "d", "one\u00a0two", "e"][: draw.randint(1, 6)]

        def caption(words=words):
            return " ".join(draw.choice(words) for _ in range(draw.randint(0, 9)))

        count = draw.randint(1, 6)
        candidates = [caption() for _ in range(count)]
        references = [["a", *(caption() for _ in range(draw.randint(0, 4)))] for _ in range(count)]
        gts, res = dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}
        mine = ReferenceIndex(references).score(candidates)
        whole, each = bleu.compute_score(gts, res, verbose=0)
        assert mine.bleu == pytest.approx(whole, abs=1e-9)
        assert mine.bleu_each.T.tolist() == [pytest.approx(order, abs=1e-9) for order in each]
        assert mine.cider_each == pytest.approx(cider.compute_score(gts, res)[1], abs=1e-9)
        scores = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
        assert scores == pytest.approx(rouge.compute_score(gts, res)[1], abs=1e-9)


def test_references_without_words():
    result = ReferenceIndex([[""], ["", ""]]).score(["", "a b"])
    assert result.bleu == pytest.approx([0.0] * 4, abs=1e-9) and not result.cider_each.any()


def test_lcs_of_long_captions():
    assert lcs_length(list("abc" * 60), list("acb" * 60)) > 64
    assert lcs_length(list("abcbdab"), list("bdcaba")) == 4
    assert lcs_length([], ["a"]) == 0
