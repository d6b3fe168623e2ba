"""Karpathy's split files (dataset_{coco,flickr8k,flickr30k}.json) in COCO's caption format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcap.data.coco import normalise_caption, read_field, read_json
from fastcap.data.errors import DataError
from fastcap.utils.files import write_json

SPLITS = ("train", "val", "test")
# Images of each split, for the three sets that he published; `restval` counts as train.
COUNTS = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr8k": {"train": 6_000, "val": 1_000, "test": 1_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}


def convert(source: Path, out: Path, restval: bool = True, expected: Mapping[str, int] | None = None) -> dict[str, int]:
    """Write ``captions_karpathy_{train,val,test}.json`` beside one another.

    Image ids are COCO's own, else the file's ``imgid``; file names hold the folder where the file names one
    (``val2014/COCO_val2014_....jpg``).

    Args:
        source: A ``dataset_*.json``.
        out: Folder to write into.
        restval: Whether the 30,504 images of COCO's validation set that are in no split (``restval``) join ``train``.
        expected: Images that each split must hold.

    Returns:
        Number of images in each split.

    Raises:
        DataError: Naming the file and field at the first thing that is not of his format.
    """
    content = read_json(source, "Karpathy's split file")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{source}: field 'images' must be a list")
    splits: dict[str, dict[str, list[Any]]] = {name: {"images": [], "annotations": []} for name in SPLITS}
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
        if split == "restval" and not restval:
            continue
        target = splits["train" if split == "restval" else split]
        target["images"].append({"id": image_id, "file_name": file_name})
        for number, sentence in enumerate(sentences):
            place = f"{where}.sentences[{number}]"
            caption = normalise_caption(read_field(sentence, "raw", str, place))
            caption_id = read_field(sentence, "sentid", int, place)
            target["annotations"].append({"id": caption_id, "image_id": image_id, "caption": caption})
    counts = {name: len(content["images"]) for name, content in splits.items()}
    if empty := [name for name, count in counts.items() if not count]:
        raise DataError(f"{source}: field 'images' holds no image of split {empty[0]}")
    if expected and counts != expected:
        raise DataError(f"{source}: {counts} images, must be {dict(expected)}")
    for name, part in splits.items():
        info = {"description": f"Karpathy's {name} split, from {source.name}"}
        write_json(out / f"captions_karpathy_{name}.json", {"info": info, **part})
    return counts
