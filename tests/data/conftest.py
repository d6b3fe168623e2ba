import json

import numpy as np
import pytest
from PIL import Image

from fastcap.data import CocoCaptions


def write_set(root, content, split="train"):
    """Write ``content`` as one split's annotation file."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
    return CocoCaptions(root)


def tiny_content(captions, first_id=100):
    """COCO-format content: image i is named i.png and has the captions given."""
    return {
        "images": [{"id": first_id + i, "file_name": f"{i}.png"} for i in range(len(captions))],
        "annotations": [
            {"id": 10 * i + j, "image_id": first_id + i, "caption": text}
            for i, texts in enumerate(captions)
            for j, text in enumerate(texts)
        ],
    }


def write_scenes(records, root, size):
    """Write a split of the drawn scenes as a set in COCO's format."""
    names = [f"{records.name}_{index:06d}.png" for index in range(len(records))]
    images = [{"id": i, "file_name": name} for i, name in zip(records.image_ids, names, strict=True)]
    captions = zip(records.image_ids, records.captions, strict=True)
    pairs = [(image_id, text) for image_id, texts in captions for text in texts]
    annotations = [{"id": i, "image_id": image_id, "caption": text} for i, (image_id, text) in enumerate(pairs)]
    write_set(root, {"images": images, "annotations": annotations}, records.name)
    for index, name in enumerate(names):
        Image.fromarray(records.load_image(index, size)).save(root / "images" / name)


@pytest.fixture
def make_set(tmp_path):
    """A function that writes a tiny set with noise images and returns it as a source."""

    def make(captions, splits=("train",), size=12):
        source = None
        for split in splits:
            source = write_set(tmp_path, tiny_content(captions), split)
        for index in range(len(captions)):
            pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        assert source is not None
        return source

    return make
