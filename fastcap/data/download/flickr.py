"""Flickr8k and Flickr30k from the archives that people have, in COCO's caption format.

    ROOT/images/*.jpg
    ROOT/annotations/captions_{train,val,test}.json     by the split lists
    ROOT/annotations/captions_extra.json                images in no list, if any

Known are the official archives (``Flickr8k_Dataset.zip``, ``Flickr8k_text.zip``, ``flickr30k-images.tar``,
``results_20130124.token``), Kaggle's (``Images/`` with ``captions.txt``, ``flickr30k_images/`` with ``results.csv``)
and Karpathy's ``dataset_flickr{8,30}k.json``, which holds captions and splits.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastcap.data.coco import normalise_caption
from fastcap.data.download.coco import COUNTS, SPLITS, read_karpathy
from fastcap.data.download.transfer import Entry, copy, entries
from fastcap.data.errors import MAX_SKIPPED, DataError, Skipped
from fastcap.utils.files import write_json

# One name in Flickr8k's file ends in ".1"; one line of Flickr30k's lacks its second bar.
_TOKEN_LINE = re.compile(r"([^\t#]+?\.jpe?g)(?:\.\d)?#\d+\t(.*)", re.IGNORECASE)
_RESULTS_LINE = re.compile(r"([^|]+?\.jpe?g)\s*\|\s*\d+\s*\|?\s+(.*)", re.IGNORECASE)
_LIST = re.compile(r"(?:flickr_?(?:8|30)k\.)?(train|dev|val|test)(?:images)?\.txt", re.IGNORECASE)
_NO_SPLITS = (
    "these archives (Kaggle's, say) do not tell which photographs are for training: add the official lists "
    "(Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt) or Karpathy's dataset_{name}.json by --archive"
)
_ENTITIES = {"train": 29_783, "val": 1_000, "test": 1_000}  # Flickr30k Entities' lists
_SIZES = {"flickr8k": [COUNTS["flickr8k"]], "flickr30k": [COUNTS["flickr30k"], _ENTITIES]}


@dataclass
class _Parts:
    """What was found so far: names of photographs, captions by name, and names of each split by the lists."""

    images: set[str] = field(default_factory=set)
    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)


def lay_out(name: str, sources: Iterable[Path], root: Path) -> dict[str, int]:
    """Take "flickr8k" or "flickr30k" out of archives, folders and files; returns the number of images of each split.

    Raises:
        DataError: Naming what is missing or malformed, or what does not have the numbers that the set is known to have.
    """
    parts = _Parts()
    for source in sources:
        for entry in entries(source):
            _take(entry, parts, root / "images", source)
    if not parts.images:
        raise DataError(f"{root}: no photograph (*.jpg) among the archives")
    if not parts.captions:
        raise DataError(f"{root}: no captions among the archives (captions.txt, *.token.txt, results.csv, Karpathy's)")
    if not {"train", "val"} <= parts.splits.keys():
        raise DataError(_NO_SPLITS.format(name=name))
    return _write(parts, root / "annotations", _SIZES[name])


def _take(entry: Entry, parts: _Parts, images: Path, source: Path) -> None:
    name, suffix = entry.name.name, entry.name.suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        copy(entry, images / name)
        parts.images.add(name)
    elif suffix in (".txt", ".token", ".csv") and "lemma" not in name:
        text = _text(entry, source)
        if found := _LIST.fullmatch(name):
            split = found[1].lower().replace("dev", "val")
            lines = filter(None, map(str.strip, text.splitlines()))
            parts.splits[split] = [line if "." in line else f"{line}.jpg" for line in lines]
        elif captions := _read_captions(text):
            parts.captions = captions
    elif suffix == ".json" and name.startswith("dataset_flickr"):
        where = f"{source}: {name}"
        try:
            content = json.loads(_text(entry, source))
        except ValueError as error:
            raise DataError(f"{where} is not readable JSON ({error})") from error
        parts.captions, parts.splits = {}, {split: [] for split in SPLITS}
        for image in read_karpathy(content, where):
            parts.captions[image.file_name] = list(image.captions.values())
            parts.splits[image.split].append(image.file_name)


def _text(entry: Entry, source: Path) -> str:
    try:
        with entry.open() as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: {entry.name} is no UTF-8 text ({error})") from error


def _read_captions(text: str) -> dict[str, list[str]]:
    """Read any of the captions' formats; nothing where it is none of them."""
    lines = text.splitlines()
    if lines and lines[0].replace(" ", "").lower() == "image,caption":
        rows = [(row[0], ",".join(row[1:])) for row in csv.reader(lines[1:]) if len(row) > 1]
    else:
        found = [_TOKEN_LINE.fullmatch(line) or _RESULTS_LINE.fullmatch(line) for line in lines]
        rows = [(match[1], match[2]) for match in found if match]
    captions: dict[str, list[str]] = {}
    for name, caption in rows:
        if caption := normalise_caption(caption):
            captions.setdefault(name.strip(), []).append(caption)
    return captions


def _write(parts: _Parts, folder: Path, known: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Write a file for each split; ids count the captioned photographs in order of their names."""
    ids = {name: number for number, name in enumerate(sorted(parts.captions), start=1)}
    listed = {name for names in parts.splits.values() for name in names}
    splits = {**parts.splits, "extra": sorted(parts.images & ids.keys() - listed)}
    if "test" not in splits:
        print(f"There is no test list among the archives: {len(splits['extra'])} photographs of no list go to `extra`.")
    contents = {}
    for split, names in splits.items():
        sizes = [each[split] for each in known if split in each]
        if sizes and len(names) not in sizes:
            raise DataError(f"{split}: its list names {len(names)} photographs, must be {' or '.join(map(str, sizes))}")
        skipped = Skipped(split)
        for name in names:
            if name not in parts.images or name not in ids:
                skipped.add("without a photograph" if name in ids else "without a caption", name)
        skipped.check(len(names), MAX_SKIPPED)
        kept = [name for name in names if name in parts.images and name in ids]
        images = [{"id": ids[name], "file_name": name} for name in kept]
        annotations = [
            {"id": 10 * ids[name] + number, "image_id": ids[name], "caption": caption}
            for name in kept
            for number, caption in enumerate(parts.captions[name])
        ]
        if kept:
            contents[split] = {"images": images, "annotations": annotations}
    for split, content in contents.items():
        write_json(folder / f"captions_{split}.json", content)
    return {split: len(content["images"]) for split, content in contents.items()}
