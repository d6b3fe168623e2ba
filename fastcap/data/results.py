"""Captions in COCO's result format, and the references that they are scored against."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastcap.data.coco import parse_annotations, read_field, read_json
from fastcap.data.errors import DataError, Skipped
from fastcap.utils.files import write_text


@dataclass
class ScoredPair:
    """One generated caption with all that it is scored against.

    Attributes:
        image_id: The image's id.
        caption: The caption, as it stands in the result file.
        references: The image's reference captions, at least one.
        file_name: The image's file as the references name it, or "".
    """

    image_id: int
    caption: str
    references: list[str]
    file_name: str


def write_results(path: Path, captions: Iterable[tuple[int, str]]) -> None:
    """Write (image id, caption) pairs as COCO's evaluation server takes them: a list of two-field objects."""
    rows = [{"image_id": int(image_id), "caption": caption} for image_id, caption in captions]
    write_text(path, json.dumps(rows))


def read_results(path: Path) -> dict[int, str]:
    """Read a result file; further fields of an entry are ignored, as COCO's server does.

    Returns:
        Caption of each image id, in the file's order.

    Raises:
        DataError: Naming the file and the entry, at the first thing that is not COCO's result format.
    """
    content = read_json(path, "result file")
    if not isinstance(content, list):
        raise DataError(
            f"{path}: must hold a JSON list of {{image_id, caption}} objects, found {type(content).__name__}"
        )
    if not content:
        raise DataError(f"{path}: the list of captions is empty")
    captions: dict[int, str] = {}
    places: dict[int, int] = {}
    for index, entry in enumerate(content):
        where = f"{path}: [{index}]"
        image_id = read_field(entry, "image_id", int, where)
        caption = read_field(entry, "caption", str, where)
        if image_id in captions:
            raise DataError(f"{where}.image_id {image_id} is a duplicate of [{places[image_id]}]")
        captions[image_id], places[image_id] = caption, index
    return captions


def pair_results(results: Path, references: Path, allow_missing: bool = False) -> list[ScoredPair]:
    """Join a result file with a COCO caption annotation file.

    Images that the annotations list without any caption cannot be scored: they are left out, counted and reported.

    Args:
        results: Captions in COCO's result format.
        references: COCO caption annotations; ``file_name`` may be absent.
        allow_missing: Score what was captioned where other images were not, and report their number.

    Returns:
        One entry an image, in the annotations' order.

    Raises:
        DataError: Naming the file and what is wrong: malformed, an id that the annotations lack, images without a
            caption (unless allowed), or nothing left to score.
    """
    captions = read_results(results)
    files, texts, _ = parse_annotations(references, need_files=False)
    unknown = [image_id for image_id in captions if image_id not in files]
    if unknown:
        place = list(captions).index(unknown[0])
        raise DataError(
            f"{results}: [{place}].image_id {unknown[0]} is not among the ids of images in {references}"
            f" ({len(unknown)} of {len(captions)} are not)"
        )
    skipped = Skipped(str(references))
    missing = [image_id for image_id in files if texts[image_id] and image_id not in captions]
    if missing and not allow_missing:
        raise DataError(
            f"{results}: no caption for {len(missing)} of the {sum(map(bool, texts.values()))} images with references"
            f" in {references} (first: image id {missing[0]}); --allow-missing scores the others"
        )
    for image_id in missing:
        skipped.add("images without a caption to score", f"image id {image_id}")
    pairs = []
    for image_id in files:
        if image_id not in captions:
            continue
        if texts[image_id]:
            pairs.append(ScoredPair(image_id, captions[image_id], texts[image_id], files[image_id]))
        else:
            skipped.add("images without a reference", f"image id {image_id}")
    skipped.report()
    if not pairs:
        raise DataError(f"{results}: none of its captions has a reference in {references}")
    return pairs
