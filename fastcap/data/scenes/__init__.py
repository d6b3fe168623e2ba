"""The embedded data set: drawn scenes with captions, three splits, no download, every right answer known."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import PIL

from fastcap.data.errors import DataError
from fastcap.data.scenes import render
from fastcap.data.scenes.language import NOUNS, draw_caption, draw_captions
from fastcap.data.scenes.world import SPLITS, sample_scene
from fastcap.types import CaptionRecords, CaptionSource

NUM_CAPTIONS = 5
_ID_STRIDE = 10_000_000


class SceneRecords(CaptionRecords):
    """One split of the drawn scenes; scene i and its five captions depend on the seed, the split and i only.

    The oracle's caption is a sixth one drawn by the same grammar: the bar for a model that sees all.

    Attributes:
        facts: The scene at each position.
    """

    def __init__(self, name: str, num_scenes: int, seed: int) -> None:
        self.name, self.facts = name, [sample_scene(seed, name, index) for index in range(num_scenes)]
        self.image_ids = [SPLITS.index(name) * _ID_STRIDE + index for index in range(num_scenes)]
        self.captions = [
            draw_captions(Random(f"{seed}/{name}/{index}/captions"), scene, NUM_CAPTIONS)
            for index, scene in enumerate(self.facts)
        ]
        self.oracle_captions = {
            self.image_ids[index]: draw_caption(Random(f"{seed}/{name}/{index}/oracle"), scene)
            for index, scene in enumerate(self.facts)
        }

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Draw the scene at position ``index``. RGB uint8 (size, size, 3)."""
        return render.draw_scene(self.facts[index], size)

    def score(self, captions: Mapping[int, str]) -> dict[str, float]:
        """Measure which share of the objects that captions name is there, x 100; naming none counts as a false one."""
        shapes = {form: shape for shape, table in NOUNS.items() for forms, _ in table for form in forms}
        facts, named, true = dict(zip(self.image_ids, self.facts, strict=True)), 0, 0
        for image_id, caption in captions.items():
            claimed = Counter(shapes[word] for word in re.findall("[a-z]+", caption.lower()) if word in shapes)
            named += max(claimed.total(), 1)
            true += (claimed & Counter(group.shape for group in facts[image_id].groups)).total()
        return {"object_accuracy": 100 * true / max(named, 1)}

    def fingerprint(self) -> str:
        """A string that changes with the facts, the drawing code and the library that draws."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(Path(render.__file__).read_bytes())
        digest.update(PIL.__version__.encode())
        for scene in self.facts:
            digest.update(repr(scene).encode())
        return f"scenes-{self.name}-{len(self)}-{digest.hexdigest()}"


class Scenes(CaptionSource):
    """The data set of drawn scenes."""

    def __init__(self, num_train: int = 8000, num_val: int = 500, num_test: int = 500, seed: int = 0) -> None:
        """Set the number of scenes in each split and the seed of all of them."""
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        self.seed = seed

    def split(self, name: str) -> SceneRecords:
        """Draw a split; raises ``DataError`` when there is none of that name."""
        if name not in self.sizes:
            raise DataError(f"scenes have no split {name!r}; choose from {', '.join(self.sizes)}")
        return SceneRecords(name, self.sizes[name], self.seed)
