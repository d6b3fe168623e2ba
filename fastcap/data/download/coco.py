"""MS COCO's pieces (where they are, what they must be, where they go), and Karpathy's split files in COCO's format.

Below the data folder, as ``conf/data/coco.yaml`` expects it:

    images/{train2014,val2014,train2017,val2017}/*.jpg
    annotations/captions_{train,val}{2014,2017}.json            COCO's own
    annotations/captions_karpathy_{train,val,test}.json         Karpathy's split of 2014, converted
    archives/                                                   what is on its way; emptied piece by piece
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastcap.data.coco import normalise_caption, read_field, read_json
from fastcap.data.download.transfer import check_space, copy, entries, fetch
from fastcap.data.errors import DataError
from fastcap.utils.files import write_json

COCO_URL = "http://images.cocodataset.org"  # over HTTPS its certificate does not fit the name; MD5 settles the content
KARPATHY_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent"
SPLITS = ("train", "val", "test")
# Images of each split, for the three sets that Karpathy published; `restval` counts as train.
COUNTS = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}


@dataclass(frozen=True)
class Piece:
    """One archive and what comes out of it."""

    name: str
    file: str  # below its host's base address
    size: int  # bytes, as once published
    md5: str | None = None
    images: int = 0  # that it must hold
    captions: tuple[str, ...] = ()  # its annotation files


def _captions(year: str, size: int, md5: str) -> Piece:
    names = f"captions_train{year}", f"captions_val{year}"
    return Piece(f"captions{year}", f"annotations/annotations_trainval{year}.zip", size, md5, captions=names)


def _images(name: str, size: int, md5: str, images: int) -> Piece:
    return Piece(name, f"zips/{name}.zip", size, md5, images)


PIECES = {
    "2014": [
        _captions("2014", 252_872_794, "0a379cfc70b0e71301e0f377548639bd"),
        _images("val2014", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 40_504),
        _images("train2014", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 82_783),
    ],
    "2017": [
        _captions("2017", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c"),
        _images("val2017", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 5_000),
        _images("train2017", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 118_287),
    ],
}
KARPATHY = Piece("karpathy", "caption_datasets.zip", 36_745_453)


def fetch_coco(pieces: Iterable[Piece], root: Path) -> None:
    """Bring pieces into a data folder: fetch, unpack and check them; what is there and complete is left alone.

    Raises:
        DataError: Naming the address or file and what is wrong with it.
    """
    archives = root / "archives"
    missing = [(piece, archives / Path(piece.file).name) for piece in pieces if not _complete(piece, root)]
    # Unpacked pictures take what their archives take, and archives go one by one.
    sizes = [piece.size for piece, archive in missing if not archive.is_file()]
    check_space(root, sum(sizes) + max(sizes, default=0))
    for piece, archive in missing:
        print(f"{piece.name:<13} {piece.size / 1e9:.1f} GB")
        fetch(f"{KARPATHY_URL if piece is KARPATHY else COCO_URL}/{piece.file}", archive, piece.md5)
        _lay_out(piece, archive, root)
        archive.unlink()
        if not any(archives.iterdir()):
            archives.rmdir()
        print(f"{piece.name:<13} complete")


def _lay_out(piece: Piece, archive: Path, root: Path) -> None:
    annotations = root / "annotations"
    for entry in entries(archive):
        if piece.images and entry.name.suffix == ".jpg":
            copy(entry, root / "images" / piece.name / entry.name.name)
        elif entry.name.stem in piece.captions or (piece is KARPATHY and entry.name.name == "dataset_coco.json"):
            copy(entry, annotations / entry.name.name)
    if piece is KARPATHY:
        convert(annotations / "dataset_coco.json", annotations)
    if not _complete(piece, root):
        raise DataError(f"{archive}: {_count(piece, root)} images, must be {piece.images}")


def _complete(piece: Piece, root: Path) -> bool:
    names = piece.captions or [f"captions_karpathy_{split}" for split in SPLITS if piece is KARPATHY]
    present = all((root / "annotations" / f"{name}.json").is_file() for name in names)
    return present and _count(piece, root) >= piece.images


def _count(piece: Piece, root: Path) -> int:
    folder = root / "images" / piece.name
    return sum(name.endswith(".jpg") for name in os.listdir(folder)) if folder.is_dir() else 0


class KarpathyImage(NamedTuple):
    """An image of Karpathy's split files (dataset_{coco,flickr8k,flickr30k}.json)."""

    split: str  # train (his restval too), val or test
    image_id: int  # COCO's own, else the file's imgid
    file_name: str  # with the folder where the file names one (val2014/COCO_val2014_....jpg)
    captions: dict[int, str]  # by caption id


def read_karpathy(content: Any, source: str) -> Iterator[KarpathyImage]:
    """Yield the images of a split file, given its JSON and what to call it in errors.

    Raises:
        DataError: Naming the file and field at the first thing that is not of his format.
    """
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{source}: field 'images' must be a list")
    seen: set[int] = set()
    for index, entry in enumerate(content["images"]):
        where = f"{source}: images[{index}]"
        split = read_field(entry, "split", str, where)
        if split not in (*SPLITS, "restval"):
            raise DataError(f"{where}.split must be train, restval, val or test, found {split!r}")
        image_id = read_field(entry, "cocoid" if "cocoid" in entry else "imgid", int, where)
        if image_id in seen:
            raise DataError(f"{where}: image id {image_id} is a duplicate")
        seen.add(image_id)
        file_name = read_field(entry, "filename", str, where)
        if "filepath" in entry:
            file_name = f"{read_field(entry, 'filepath', str, where)}/{file_name}"
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            raise DataError(f"{where}.sentences must be a list with captions")
        captions = {}
        for number, sentence in enumerate(sentences):
            place = f"{where}.sentences[{number}]"
            caption = normalise_caption(read_field(sentence, "raw", str, place))
            captions[read_field(sentence, "sentid", int, place)] = caption
        yield KarpathyImage("train" if split == "restval" else split, image_id, file_name, captions)


def convert(source: Path, out: Path) -> None:
    """Write Karpathy's ``dataset_coco.json`` as ``captions_karpathy_{train,val,test}.json`` in COCO's format.

    Raises:
        DataError: Naming the file, if it is not of his format or has other numbers of images.
    """
    splits: dict[str, list[KarpathyImage]] = {name: [] for name in SPLITS}
    for image in read_karpathy(read_json(source, "Karpathy's split file"), str(source)):
        splits[image.split].append(image)
    counts = {name: len(images) for name, images in splits.items()}
    if counts != COUNTS["coco"]:
        raise DataError(f"{source}: {counts} images, must be {COUNTS['coco']}")
    for name, images in splits.items():
        content = {
            "images": [{"id": image.image_id, "file_name": image.file_name} for image in images],
            "annotations": [
                {"id": caption_id, "image_id": image.image_id, "caption": caption}
                for image in images
                for caption_id, caption in image.captions.items()
            ],
        }
        write_json(out / f"captions_karpathy_{name}.json", content)
