"""The scores of captioning papers (BLEU, ROUGE-L, CIDEr-D, METEOR), and faults that need no references."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from fastcap.metrics.java import JavaError, meteor, warn_once
from fastcap.metrics.ngrams import CiderD, bleu, rouge_l
from fastcap.metrics.tokens import choose_tokenizer, tokenize

NAMES = ("bleu", "rouge_l", "cider", "meteor")


class CaptionScores(NamedTuple):
    """Scores of a set of captions, times 100.

    Attributes:
        metrics: Of the whole set: ``bleu1`` to ``bleu4``, ``rouge_l``, ``cider``, ``meteor``, as far as asked for and
            possible.
        images: ``bleu4``, ``rouge_l`` and ``cider`` of each image by itself, by ascending id. CIDEr-D takes its
            document frequencies from the whole set, so its mean is the set's; BLEU-4 has no such mean.
    """

    metrics: dict[str, float]
    images: dict[int, dict[str, float]]


class CaptionMetrics:
    """Scores generated captions against references; equal to pycocoevalcap's and times 100.

    A score that cannot be had (METEOR without Java) is left out with one warning. An empty caption scores 0 in
    everything, except that ROUGE-L gives it 100 where a reference has no word either, as pycocoevalcap does. CIDEr-D of
    one image alone is 0: its document frequencies tell nothing.

    Args:
        names: Which scores, out of "bleu", "rouge_l", "cider" (pycocoevalcap's Cider, which is CIDEr-D) and "meteor".
        tokenizer: "ptb" (Stanford's, by Java; ``JavaError`` where that fails), "simple" (pure Python, near it), or
            "auto": PTB's where Java is found.

    Attributes:
        tokenizer_name: Which tokenizer the scores come from, "ptb" or "simple".
    """

    def __init__(self, names: Sequence[str] = ("bleu", "rouge_l", "cider"), tokenizer: str = "auto") -> None:
        if isinstance(names, str) or not names or not set(names) <= set(NAMES):
            raise ValueError(f"names must be some of {', '.join(NAMES)}; got {names!r}")
        self.names = names
        self.tokenizer_name = choose_tokenizer(tokenizer)
        self._insists = tokenizer == "ptb"

    def score(
        self, image_ids: Sequence[int], captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> CaptionScores:
        """Score captions. The first caption of an image counts; the order of the images changes nothing.

        Args:
            image_ids: Ids of the images. (N)
            captions: One generated caption for each. (N)
            references: At least one reference caption for each. (N)

        Raises:
            ValueError: The three differ in length, an image has no list of references, or there are no images.
        """
        if not len(image_ids) == len(captions) == len(references):
            raise ValueError(f"{len(image_ids)} image ids, {len(captions)} captions, {len(references)} reference lists")
        rows: dict[int, tuple[str, Sequence[str]]] = {}
        for image_id, caption, texts in zip(image_ids, captions, references, strict=True):
            if isinstance(texts, str) or len(texts) == 0:
                raise ValueError(f"image {int(image_id)} needs a list of at least one reference, got {texts!r}")
            rows.setdefault(int(image_id), (caption, texts))
        if not rows:
            raise ValueError("there are no captions to score: the validation set is empty")
        ids = sorted(rows)
        tokens = self._tokenized([text for caption, texts in rows.values() for text in (caption, *texts)])
        candidates = [tokens[rows[image_id][0]] for image_id in ids]
        known = [[tokens[text] for text in rows[image_id][1]] for image_id in ids]

        words = [[text.split() for text in texts] for texts in known]
        bleu_all, bleu_each = bleu([text.split() for text in candidates], words)
        rouge = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, known, strict=True)]
        cider = CiderD(dict(enumerate(words)))(range(len(ids)), [text.split() for text in candidates])
        metrics: dict[str, float] = {}
        if "bleu" in self.names:
            metrics |= {f"bleu{order}": 100.0 * value for order, value in enumerate(bleu_all, start=1)}
        if "rouge_l" in self.names:
            metrics["rouge_l"] = 100.0 * sum(rouge) / len(rouge)
        if "cider" in self.names:
            metrics["cider"] = 100.0 * sum(cider) / len(cider)
        if "meteor" in self.names:
            try:
                metrics["meteor"] = 100.0 * meteor(candidates, known)
            except JavaError as error:
                warn_once(f"meteor is left out of the caption metrics: {error}")
        each = zip(ids, bleu_each, rouge, cider, strict=True)
        return CaptionScores(
            metrics, {i: {"bleu4": 100.0 * b[3], "rouge_l": 100.0 * r, "cider": 100.0 * c} for i, b, r, c in each}
        )

    def _tokenized(self, sentences: list[str]) -> dict[str, str]:
        try:
            return tokenize(sentences, self.tokenizer_name)
        except JavaError as error:
            if self._insists:
                raise JavaError(f"tokenizer=ptb: {error}") from error
            warn_once(f"caption metrics go on with the simple tokenizer, scores are near PTB's but not equal: {error}")
            self.tokenizer_name = "simple"
            return tokenize(sentences, "simple")


def caption_faults(captions: Sequence[str]) -> dict[str, float]:
    """Measure what typically goes wrong in non-autoregressive captions. Words are split at white space, case ignored.

    Returns:
        `distinct`: share of distinct captions x 100 (100: no two alike). `repetitions`: share of captions in which a
        word follows itself ("a a dog") x 100. `length_mean`: mean number of words.
    """
    words = [caption.casefold().split() for caption in captions]
    return {
        "distinct": 100.0 * len(set(map(tuple, words))) / len(words),
        "repetitions": 100.0 * sum(any(a == b for a, b in pairwise(each)) for each in words) / len(words),
        "length_mean": sum(map(len, words)) / len(words),
    }


def count_lengths(captions: Sequence[str]) -> dict[str, int]:
    """Count captions by their number of words, split at white space; the numbers ascend (as texts, JSON's keys)."""
    counts = Counter(len(caption.split()) for caption in captions)
    return {str(length): counts[length] for length in sorted(counts)}
