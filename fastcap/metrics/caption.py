"""The scores of captioning papers as one torchmetrics metric: BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from fastcap.metrics import records
from fastcap.metrics.jars import meteor, spice
from fastcap.metrics.java import JavaError, warn_once
from fastcap.metrics.ngrams import NgramScores, ReferenceIndex
from fastcap.metrics.records import Record
from fastcap.metrics.rouge import rouge_l
from fastcap.metrics.tokens import TokenizerName, choose_tokenizer, tokenize

NAMES = ("bleu", "rouge_l", "cider", "meteor", "spice")
_JARS: dict[str, Callable[[list[str], list[list[str]]], float]] = {"meteor": meteor, "spice": spice}


class Scored(NamedTuple):
    """Captions and references in tokens, and the scores that cost little."""

    candidates: list[str]
    references: list[list[str]]
    ngrams: NgramScores
    rouge_each: list[float]


class CaptionMetrics(Metric):
    """Scores of generated captions against references, equal to pycocoevalcap's and times 100.

    Use `update` for each batch and `compute` at the end of the epoch; calling the metric itself scores each batch too.
    Under DDP all processes' captions are gathered and each image counts once, so padding samplers change nothing. A
    score that cannot be had (METEOR without Java, SPICE without its models) is left out with one warning.

    An empty caption scores 0 in everything, except that ROUGE-L gives it 100 where a reference has no word either, as
    pycocoevalcap does. CIDEr-D of one image alone is 0: its document frequencies tell nothing.

    Args:
        names: Which scores, out of "bleu", "rouge_l", "cider" (pycocoevalcap's Cider, which is CIDEr-D), "meteor" and
            "spice".
        tokenizer: "ptb" (Stanford's, by Java), "simple" (pure Python, near it), or "auto": PTB's where Java is found.
        **kwargs: torchmetrics' own options.

    Attributes:
        tokenizer_name: Which tokenizer the scores come from, "ptb" or "simple".

    Raises:
        ValueError: An unknown score or tokenizer.
        JavaError: tokenizer="ptb", and Java or pycocoevalcap's jar is missing; also when scoring, where Java fails.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        names: Sequence[str] = ("bleu", "rouge_l", "cider"),
        tokenizer: Literal["ptb", "simple", "auto"] = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown = [name for name in names if name not in NAMES]
        if isinstance(names, str) or unknown or not names:
            raise ValueError(f"names must be some of {', '.join(NAMES)}; got {names!r}")
        self.names = tuple(dict.fromkeys(names))
        self.tokenizer_name: TokenizerName = choose_tokenizer(tokenizer)
        self._insists = tokenizer == "ptb"
        self._index: tuple[list[list[str]], ReferenceIndex] | None = None
        self._last: tuple[list[Record], Scored] | None = None  # what was scored last: asked for twice, scored once
        self.records: list[Tensor]
        self.add_state("records", default=[], dist_reduce_fx="cat", persistent=False)

    def update(self, image_ids: Sequence[int], captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add a batch. An image that was added before keeps its first caption.

        Args:
            image_ids: Ids of the images. (B)
            captions: One generated caption for each.
            references: At least one reference caption for each.

        Raises:
            ValueError: The three differ in length, or an image has no references or a bare string for them.
        """
        if not len(image_ids) == len(captions) == len(references):
            raise ValueError(f"{len(image_ids)} image ids, {len(captions)} captions, {len(references)} reference lists")
        batch = []
        for image_id, caption, texts in zip(image_ids, captions, references, strict=True):
            if isinstance(texts, str) or len(texts) == 0:
                raise ValueError(f"image {int(image_id)} needs a list of at least one reference, got {texts!r}")
            batch.append(Record(int(image_id), str(caption), tuple(map(str, texts))))
        if batch:
            self.records.append(records.encode(batch).to(self.device))

    def compute(self) -> dict[str, float]:
        """Score everything added since the last reset, in all processes.

        Returns:
            `bleu1` to `bleu4`, `rouge_l`, `cider`, `meteor`, `spice` as far as asked for and possible, times 100.

        Raises:
            ValueError: Nothing was added: an empty validation set is an error.
        """
        candidates, references, ngrams, rouge_each = self._scored(self._images())
        result: dict[str, float] = {}
        if "bleu" in self.names:
            result.update({f"bleu{order}": 100.0 * float(score) for order, score in enumerate(ngrams.bleu, start=1)})
        if "rouge_l" in self.names:
            result["rouge_l"] = 100.0 * sum(rouge_each) / len(rouge_each)
        if "cider" in self.names:
            result["cider"] = 100.0 * float(ngrams.cider_each.mean())
        for name in ("meteor", "spice"):
            if name in self.names:
                try:
                    result[name] = 100.0 * _JARS[name](candidates, references)
                except JavaError as error:
                    warn_once(f"{name} is left out of the caption metrics: {error}")
        return result

    def compute_per_image(self) -> dict[int, dict[str, float]]:
        """Score each image by itself, for tables of good and bad captions. Under DDP all processes must call it.

        Returns:
            For each image id `bleu4`, `rouge_l` and `cider`, times 100. CIDEr-D takes its document frequencies from the
            whole set, so its mean is the set's; BLEU-4 has no such mean.

        Raises:
            ValueError: Nothing was added.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            images = self._images()
        _, _, ngrams, rouge_each = self._scored(images)
        return {
            image.image_id: {
                "bleu4": 100.0 * float(ngrams.bleu_each[i, 3]),
                "rouge_l": 100.0 * rouge_each[i],
                "cider": 100.0 * float(ngrams.cider_each[i]),
            }
            for i, image in enumerate(images)
        }

    def _images(self) -> list[Record]:
        images = records.decode(self.records)
        if not images:
            if self._is_synced:  # torchmetrics does not undo the gathering when an error leaves compute
                self.unsync()
            raise ValueError(
                "CaptionMetrics has no captions to score: the validation set is empty (or update was not called)"
            )
        return images

    def _scored(self, images: list[Record]) -> Scored:
        if self._last is None or self._last[0] != images:
            candidates, references = self._tokenized(images)
            rouge_each = [rouge_l(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
            self._last = images, Scored(candidates, references, self._ngrams(candidates, references), rouge_each)
        return self._last[1]

    def _tokenized(self, images: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
        sentences = [text for image in images for text in (image.caption, *image.references)]
        try:
            tokens = tokenize(sentences, self.tokenizer_name)
        except JavaError as error:
            if self._insists:
                raise JavaError(f"tokenizer=ptb: {error}") from error
            warn_once(f"caption metrics go on with the simple tokenizer, scores are near PTB's but not equal: {error}")
            self.tokenizer_name = "simple"
            tokens = tokenize(sentences, self.tokenizer_name)
        return [tokens[image.caption] for image in images], [
            [tokens[text] for text in image.references] for image in images
        ]

    def _ngrams(self, candidates: list[str], references: list[list[str]]) -> NgramScores:
        if self._index is None or self._index[0] != references:
            self._index = (references, ReferenceIndex(references))
        return self._index[1].score(candidates)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        if not self.records:  # torchmetrics would send floats for a process without data, the others send bytes
            self.records = [records.empty().to(self.device)]
        super()._sync_dist(dist_sync_fn, process_group)
        self.records = [self.records] if isinstance(self.records, Tensor) else self.records

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what was counted: it is counted again when needed."""
        return {**super().__getstate__(), "_index": None, "_last": None}
