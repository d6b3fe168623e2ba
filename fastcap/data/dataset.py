"""One split, ready to be batched: token ids of its captions, pixels of its images, and random changes of both."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from fastcap.data.caches import PixelCache
from fastcap.data.coco import read_results
from fastcap.data.errors import DataError, Skipped, log_once
from fastcap.data.sampler import BatchIndex
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.types import CaptionBatch, CaptionRecords
from fastcap.utils.rng import counter_uniform

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_CAPTION, _FLIP, _SIDE, _TOP, _LEFT, _DISTILLED, _TEACHER = range(7)  # streams of counter_uniform


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
        """Tokenise captions of at most ``max_length`` tokens with a known word, and report those left out."""
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
        """Read the captions of one teacher or several, in COCO's result format; longer ones are cut.

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


@dataclass
class ImageBatch:
    """Images of one batch: pixels, uint8, RGB (B, 3, S, S), and classes, -1 where there are none (B,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Return the batch on ``device``."""
        return ImageBatch(self.images.to(device, non_blocking=non_blocking), self.labels.to(device))

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return ImageBatch(self.images.pin_memory(), self.labels.pin_memory())


def crop(images: Tensor, scale: float, sides: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> None:
    """Cut a square out of each image, in place, and zoom it to the image's size.

    Args:
        images: Pixels, uint8. (B, 3, S, S)
        scale: Least share of the area that a crop keeps; 1 crops nothing.
        sides: Uniform numbers in [0, 1) that settle each crop's side. (B,)
        tops: Likewise its distance from the top. (B,)
        lefts: Likewise from the left. (B,)
    """
    if scale >= 1:
        return
    size, least = images.shape[-1], math.sqrt(scale)
    widths = np.rint((least + (1 - least) * sides) * size).astype(int).clip(1, size)
    rows, columns = (np.floor(shift * (size - widths + 1)).astype(int) for shift in (tops, lefts))
    for i, (width, top, left) in enumerate(zip(widths.tolist(), rows.tolist(), columns.tolist(), strict=True)):
        # Channels last is torch's fast path: 5 times grid_sample's speed at 128 px.
        window: Any = images[i : i + 1, :, top : top + width, left : left + width]
        window = window.contiguous(memory_format=torch.channels_last)
        images[i] = F.interpolate(window, (size, size), mode="bilinear", align_corners=False)[0]


class ImageDataset(Dataset[Any]):
    """Batches of one split's images. ``__getitems__`` builds a whole one by indexing arrays, image by image if it must.

    Random choices depend on (seed, epoch, position of the image) alone, so neither the number of workers nor an
    interrupted run changes them.

    Args:
        records: The split.
        size: Side of the square images, in pixels.
        cache: Its pixels; None decodes each image when it is asked for.
        training: Change images at random.
        horizontal_flip: Mirror with probability 1/2.
        crop_scale: Least share of the area that a random square crop keeps; 1 crops nothing.
        seed: Seed of all random choices.

    Attributes:
        usable: Whether each image of the split can be used, as far as is known. Too few is a ``DataError``. (N,)
        positions: Positions in ``records`` of the images that are used.
    """

    def __init__(
        self,
        records: CaptionRecords,
        size: int,
        cache: PixelCache | None,
        training: bool,
        horizontal_flip: bool,
        crop_scale: float,
        seed: int,
    ) -> None:
        self.records, self.size, self.cache = records, size, cache
        self.training, self.crop_scale, self.seed = training, crop_scale, seed
        self.may_flip = np.full(len(records), horizontal_flip)
        self.usable = np.ones(len(records), bool)
        self.leave_out([(index, "that cannot be decoded", reason) for index, reason in (cache.bad if cache else ())])
        self.positions = np.flatnonzero(self.usable)

    def __len__(self) -> int:
        """Number of images used."""
        return len(self.positions)

    def __getitems__(self, index: BatchIndex) -> Any:
        """Build the batch of an epoch's positions; smaller where an uncached image turns out to be bad."""
        images, positions = self.pixels(index.epoch, self.positions[index.positions])
        labels = self.records.labels
        return ImageBatch(images, torch.tensor([labels[position] if labels else -1 for position in positions]))

    def leave_out(self, bad: list[tuple[int, str, str]]) -> None:
        """Mark images, each with reason and example, as not to be used; raises ``DataError`` if they are too many."""
        skipped, records = Skipped(f"{self.records.name}: images"), self.records
        before = records.num_skipped + int((~self.usable).sum())
        for index, reason, example in bad:
            self.usable[index] = False
            skipped.add(reason, example)
        skipped.check(len(self.usable) + records.num_skipped, records.max_skipped, before)

    def pixels(self, epoch: int, positions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Return pixels (B', 3, S, S) as an epoch changes them, and their positions (B',) in the split.

        They are fewer than those asked for (B,) where an uncached image is bad; none left, or too many of the split
        bad, is a ``DataError``.
        """
        images, positions = self._read(positions)
        if self.training:
            drawn = [counter_uniform(self.seed, epoch, stream, positions) for stream in (_FLIP, _SIDE, _TOP, _LEFT)]
            chosen = torch.from_numpy(self.may_flip[positions] & (drawn[0] < 0.5))
            images[chosen] = images[chosen].flip(-1)
            crop(images, self.crop_scale, *drawn[1:])
        return images, positions

    def _read(self, positions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        if self.cache is not None:
            return torch.from_numpy(self.cache.pixels[positions]), positions
        images: list[np.ndarray] = []
        kept: list[int] = []
        for position in positions.tolist():
            try:
                images.append(np.asarray(self.records.load_image(position, self.size)))
                kept.append(position)
            except DataError as error:
                if self.usable[position]:
                    self.leave_out([(position, "that cannot be decoded", str(error))])
                if position == positions[-1] and not images:
                    raise
        return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))), np.array(kept)


class CaptionDataset(ImageDataset):
    """Batches of one split's images and captions.

    Args:
        captions: The split's captions as tokens.
        num_captions: Captions of each image in a batch.
        distilled: A teacher's captions of the same images, none of some.
        distilled_share: Probability that a training caption is a teacher's, where there is one.
        **images: As of ``ImageDataset``. In training captions are drawn at random, and no image is mirrored that has
            "left" or "right" in a caption; otherwise the first captions are taken, and references passed.

    Attributes:
        features: Views of the images that a frozen encoder has encoded, in the place of pixels; see ``cache_features``.
    """

    def __init__(
        self,
        captions: CaptionTokens,
        num_captions: int,
        distilled: CaptionTokens | None = None,
        distilled_share: float = 0.5,
        **images: Any,
    ) -> None:
        super().__init__(**images)
        self.captions, self.num_captions = captions, num_captions
        self.distilled, self.distilled_share = distilled, distilled_share
        self.image_ids = np.asarray(self.records.image_ids, np.int64)
        self.features: np.ndarray | None = None
        if self.training:
            silent, reason = np.flatnonzero(captions.counts == 0).tolist(), "with no caption to learn from"
            self.leave_out([(index, reason, f"image id {self.image_ids[index]}") for index in silent])
            self.positions = np.flatnonzero(self.usable)
            if self.may_flip.any():
                self.may_flip[:] = [not any(map(_SIDED.search, texts)) for texts in self.records.captions]

    def __getitems__(self, index: BatchIndex) -> CaptionBatch:
        """Build the batch of an epoch's positions; smaller where an uncached image turns out to be bad."""
        features, positions = None, self.positions[index.positions]
        if self.features is not None:
            views = (index.epoch + index.positions) % len(self.features)
            features = torch.from_numpy(self.features[views, index.positions])
            images = torch.empty(len(positions), 3, 0, 0, dtype=torch.uint8)
        else:
            images, positions = self.pixels(index.epoch, positions)
        tokens, lengths = self._choose(index.epoch, positions)
        references = [] if self.training else [list(self.records.captions[position]) for position in positions]
        return CaptionBatch(images, torch.from_numpy(self.image_ids[positions]), tokens, lengths, references, features)

    def _choose(self, epoch: int, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pick captions, people's or a teacher's. (B, K, L) and (B, K)."""
        tokens, lengths = self._pick(self.captions, epoch, _CAPTION, positions)
        if self.distilled is not None:
            places = positions[:, None] * self.num_captions + np.arange(self.num_captions)
            share = counter_uniform(self.seed, epoch, _DISTILLED, places) < self.distilled_share
            share &= (self.distilled.counts[positions] > 0)[:, None]
            theirs, their_lengths = self._pick(self.distilled, epoch, _TEACHER, positions)
            tokens = np.where(share[..., None], theirs, tokens)
            lengths = np.where(share, their_lengths, lengths)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(lengths)

    def _pick(
        self, captions: CaptionTokens, epoch: int, stream: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """At random without replacement in training, else the first; cycled where too few. (B, K, L) and (B, K)."""
        counts = captions.counts[positions][:, None]
        columns = np.arange(self.num_captions) % np.maximum(counts, 1)
        if self.training:
            width = int(captions.counts.max())
            slots = np.arange(width)
            keys = counter_uniform(self.seed, epoch, stream, positions[:, None] * width + slots)
            order = np.argsort(np.where(slots < counts, keys, 2.0), axis=1)
            columns = np.take_along_axis(order, columns, axis=1)
        rows = np.minimum(captions.first[positions][:, None] + columns, len(captions.lengths) - 1)
        return captions.tokens[rows], captions.lengths[rows]
