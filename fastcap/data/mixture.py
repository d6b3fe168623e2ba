"""Several caption sets as one: trained on together, evaluated apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fastcap.data.coco import normalise_caption, read_json
from fastcap.data.errors import DataError
from fastcap.types import CaptionRecords, CaptionSource

_ID_STRIDE = 10**12


class MixedRecords(CaptionRecords):
    """One split of several sets, one after the other; image ids of set k are raised by k times 10^12 to differ."""

    def __init__(self, name: str, parts: Mapping[int, CaptionRecords], shares: Sequence[float]) -> None:
        """Join splits, given by the numbers of their sets."""
        self.name, self._parts = name, list(parts.values())
        sizes = [len(part) for part in self._parts]
        self._part_of = np.repeat(np.arange(len(parts)), sizes)
        self.shares = [(self._part_of == number, share) for number, share in enumerate(shares)]
        self._first = np.cumsum(sizes) - sizes
        for part in self._parts:
            if not all(0 <= image_id < _ID_STRIDE for image_id in part.image_ids):
                raise DataError(f"{part.name}: image ids must be in 0 to {_ID_STRIDE - 1} to be told from other sets'")
        self.image_ids = [number * _ID_STRIDE + i for number, part in parts.items() for i in part.image_ids]
        self.own_ids = {i: i % _ID_STRIDE for i in self.image_ids} if len(parts) == 1 else {}
        self.captions = [texts for part in self._parts for texts in part.captions]
        if all(part.paths for part in self._parts):
            self.paths = [path for part in self._parts for path in part.paths]
        self.num_skipped = sum(part.num_skipped for part in self._parts)
        self.max_skipped = min(part.max_skipped for part in self._parts)

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Decode image ``index`` (position, not id), (size, size, 3); raises ``DataError`` naming the file."""
        part = self._part_of[index]
        return np.asarray(self._parts[part].load_image(int(index - self._first[part]), size))

    def fingerprint(self) -> str:
        """Digest that changes whenever the pixels of a part would."""
        return hashlib.sha256(" ".join(part.fingerprint() for part in self._parts).encode()).hexdigest()


class CaptionMixture(CaptionSource):
    """Several caption sets as one.

    Its split "train" holds the images of all sets; so does "val", but training validates on each set's own, "val_NAME".

    Args:
        sets: The sets, by name.
        shares: Share of a set's training images that one epoch shows, by name; 1 where nothing is said. An epoch goes
            on where the last one ended, so that every image has its turn.
        text: JSON files of further captions without images, for the vocabulary and the n-gram tables: a list of
            captions, or an object whose field ``captions`` is one.
        text_weight: How much one of those counts in the n-gram tables beside a training image's caption.
    """

    def __init__(
        self,
        sets: Mapping[str, CaptionSource],
        shares: Mapping[str, float] | None = None,
        text: Sequence[str] = (),
        text_weight: float = 1.0,
    ) -> None:
        self.sets, self.text, self.text_weight = dict(sets), [Path(path).expanduser() for path in text], text_weight
        self.validation_splits = [f"val_{name}" for name in self.sets]
        self.shares = {name: 1.0 for name in self.sets} | dict(shares or {})
        if not self.sets:
            raise DataError("sets must name at least one data set")
        if odd := [name for name, share in self.shares.items() if name not in self.sets or not 0 < share <= 1]:
            raise DataError(f"shares.{odd[0]} must be a share in (0, 1] of one of {', '.join(self.sets)}")
        if text_weight < 0:
            raise DataError(f"text_weight must not be negative, found {text_weight}")

    def split(self, name: str) -> CaptionRecords:
        """Return a split of all sets together ("train", "val"), or of one ("val_coco")."""
        split, _, chosen = name.partition("_")
        numbers = {each: number for number, each in enumerate(self.sets)}
        taken = {chosen: numbers[chosen]} if chosen in numbers else numbers
        parts = {number: self.sets[each].split(split) for each, number in taken.items()}
        return MixedRecords(name, parts, [self.shares[each] for each in taken])

    def text_captions(self) -> list[str]:
        """Read the captions without images; raises ``DataError`` naming a file that cannot be read."""
        return [caption for path in self.text for caption in _read_text(path)]


def _read_text(path: Path) -> list[str]:
    content = read_json(path, "text file")
    lines = content.get("captions") if isinstance(content, dict) else content
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise DataError(f"{path}: must hold a list of captions, or an object whose field 'captions' is one")
    return [caption for caption in map(normalise_caption, lines) if caption]
