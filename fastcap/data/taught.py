"""A teacher's captions of training images, for sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcap.data.dataset import CaptionTokens
from fastcap.data.errors import DataError, log_once
from fastcap.data.results import read_results
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.types import CaptionRecords


def read_taught(
    files: Sequence[Path], records: CaptionRecords, tokenizer: CaptionTokenizer, max_length: int
) -> CaptionTokens:
    """Read result files of one or several teachers.

    Args:
        files: Captions in COCO's result format.
        records: The split they are of.
        tokenizer: Turns words into ids.
        max_length: Longer captions are cut.

    Returns:
        Tokens of each image's taught captions, none of an image that no file names.

    Raises:
        DataError: Naming the file, if it is malformed or names no image of the split.
    """
    by_image: list[list[str]] = [[] for _ in records.image_ids]
    places = {int(image_id): place for place, image_id in enumerate(records.image_ids)}
    for file in files:
        found = {places[i]: text for i, text in read_results(file).items() if i in places}
        if not found:
            raise DataError(f"{file}: field image_id: no image of {records.name!r} is among them")
        log_once(f"{records.name}: {file} teaches {len(found)} of {len(places)} images")
        for place, text in found.items():
            by_image[place].append(text)
    rows = [[ids for ids in tokenizer.encode_batch(texts) if ids] for texts in by_image]
    return CaptionTokens(rows, max_length, tokenizer.special.pad)
