"""Captions of a split as token ids, in one padded table: people's, or a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcap.data.errors import DataError, Skipped, log_once
from fastcap.data.results import read_results
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.types import CaptionRecords


class CaptionTokens:
    """Token ids of a split's captions.

    Attributes:
        tokens: Content ids, padded with PAD, int32. (C, L)
        lengths: Content tokens of each caption. (C,)
        first: Row of each image's first caption. (N,)
        counts: Captions of each image. (N,)
    """

    def __init__(self, rows: Sequence[Sequence[Sequence[int]]], max_length: int, pad: int) -> None:
        """Lay out ``rows[image][caption]``, cutting captions at ``max_length`` tokens."""
        self.counts = np.array([len(captions) for captions in rows], np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        flat = [ids[:max_length] for captions in rows for ids in captions]
        self.lengths = np.array([len(ids) for ids in flat], np.int64)
        self.tokens = np.full((len(flat), max_length), pad, np.int32)
        self.tokens[np.arange(max_length) < self.lengths[:, None]] = [index for ids in flat for index in ids]

    @classmethod
    def for_training(cls, records: CaptionRecords, tokenizer: CaptionTokenizer, max_length: int) -> CaptionTokens:
        """Tokenise the captions worth learning from, and report those left out.

        Args:
            records: The split.
            tokenizer: Turns words into ids.
            max_length: Captions with more tokens are left out, like those without any known word.
        """
        skipped, unknown = Skipped(f"{records.name}: captions for training"), {tokenizer.special.unk}
        rows: list[list[list[int]]] = []
        for captions, encoded in zip(records.captions, tokenizer.encode_nested(records.captions), strict=True):
            rows.append([])
            for text, ids in zip(captions, encoded, strict=True):
                if len(ids) > max_length:
                    skipped.add(f"longer than {max_length} tokens", repr(text))
                elif set(ids) <= unknown:
                    skipped.add("without a known word", repr(text))
                else:
                    rows[-1].append(ids)
        skipped.report()
        return cls(rows, max_length, tokenizer.special.pad)

    @classmethod
    def for_evaluation(cls, records: CaptionRecords, tokenizer: CaptionTokenizer, max_length: int) -> CaptionTokens:
        """Tokenise all captions, cut at ``max_length``; one without tokens stands as a single [UNK]."""
        unknown = [tokenizer.special.unk]
        rows = [[ids or unknown for ids in captions] for captions in tokenizer.encode_nested(records.captions)]
        if any(rows):
            rows = [captions or [unknown] for captions in rows]
        return cls(rows, max_length, tokenizer.special.pad)

    @classmethod
    def distilled(
        cls, files: Sequence[Path], records: CaptionRecords, tokenizer: CaptionTokenizer, max_length: int
    ) -> CaptionTokens:
        """Read the captions of one teacher or several (sequence-level distillation, Kim and Rush, arXiv 1606.07947).

        Args:
            files: Captions in COCO's result format.
            records: The split that they are of.
            tokenizer: Turns words into ids.
            max_length: Longer captions are cut.

        Raises:
            DataError: Naming the file, if it is malformed or names no image of the split.
        """
        by_image: list[list[str]] = [[] for _ in records.image_ids]
        places = {int(image_id): place for place, image_id in enumerate(records.image_ids)}
        for file in files:
            found = {places[i]: text for i, text in read_results(file).items() if i in places}
            if not found:
                raise DataError(f"{file}: field image_id: no image of {records.name!r} is among them")
            log_once(f"{records.name}: {file} captions {len(found)} of {len(places)} images")
            for place, text in found.items():
                by_image[place].append(text)
        rows = [[ids for ids in captions if ids] for captions in tokenizer.encode_nested(by_image)]
        return cls(rows, max_length, tokenizer.special.pad)
