"""The scores equal pycocoevalcap's own pipeline, tokenizer included."""

import random

import pytest

from fastcap.metrics import CaptionMetrics
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


@pytest.mark.parametrize("which", ["nasty", "flickr8k"])
def test_equals_pycocoevalcap(which, request, pycocoevalcap_scores):
    captions = request.getfixturevalue(which)
    whole, each = pycocoevalcap_scores(captions)
    metrics, images = score(captions, tokenizer="ptb")
    assert metrics == pytest.approx(whole, abs=1e-6)
    assert list(images) == sorted(captions.ids)
    for image_id, expected in zip(captions.ids, each, strict=True):
        assert images[image_id] == pytest.approx(expected, abs=1e-6)


def test_committed_scores(nasty):
    """These three are tokenised alike by both tokenizers, so the check needs neither Java nor pycocoevalcap."""
    captions = nasty._replace(ids=nasty.ids[:3], candidates=nasty.candidates[:3], references=nasty.references[:3])
    result = score(captions, tokenizer="simple").metrics
    assert list(result) == ["bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"]
    assert result == pytest.approx(COMMITTED, abs=1e-6)


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\u2028", "\u2029", "\x85", "\n", "\r\n", "\x1c", "\t"])
def test_white_space_shifts_nothing(separator, nasty, pycocoevalcap_scores):
    clean = nasty._replace(candidates=["a dog runs", *nasty.candidates[1:9], "x", *nasty.candidates[10:]])
    dirty = clean._replace(
        candidates=[f"a{separator}dog{separator}runs{separator}", *clean.candidates[1:]],
        references=[[text.replace(" ", separator) for text in clean.references[0]], *clean.references[1:]],
    )
    assert score(dirty, tokenizer="ptb") == score(clean, tokenizer="ptb")


def test_empty_captions_score_zero(java):
    captions, references = ["", " \n", "!"], [["A dog."], ["A cat.", "Cats."], ["Birds fly."]]
    metrics, images = CaptionMetrics(tokenizer="ptb").score([1, 2, 3], captions, references)
    assert all(set(each.values()) == {0.0} for each in (metrics, *images.values()))


def test_scorers_equal_pycocoevalcap_on_random_captions():
    their_bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    their_cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    their_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    draw = random.Random(0)
    for _ in range(150):
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


def test_references_without_words():
    references, captions = [[[]], [[], []]], [[], ["a", "b"]]
    assert bleu(captions, references)[0] == pytest.approx([0.0] * 4, abs=1e-9)
    assert CiderD(dict(enumerate(references)))([0, 1], captions) == [0.0, 0.0]


def test_rouge_of_long_captions():
    common = 4 / 7, 4 / 6  # precision and recall of the longest common subsequence "bcba"
    assert rouge_l("a b c b d a b", ["b d c a b a"]) == pytest.approx(
        2.44 * common[0] * common[1] / (common[1] + 1.44 * common[0])
    )
    assert rouge_l(" ".join("abc" * 60), [" ".join("acb" * 60)]) > 64 / 180
