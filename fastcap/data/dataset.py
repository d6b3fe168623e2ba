"""One split, ready to be batched: tokens of its captions, pixels of its images, and what chance changes in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcap.data.augment import crop
from fastcap.data.errors import DataError, Skipped, log_once
from fastcap.data.features import FeatureCache
from fastcap.data.pixels import PixelCache
from fastcap.data.sampler import BatchIndex
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.types import CaptionBatch, CaptionRecords
from fastcap.utils.rng import counter_uniform

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_CAPTION, _FLIP, _SIDE, _TOP, _LEFT, _TAUGHT, _TEACHER = range(7)  # streams of counter_uniform


class CaptionTokens:
    """Token ids of a split's captions, in one padded table.

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
        for captions, encoded in zip(records.captions, _encode(records, tokenizer), strict=True):
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
        rows = [[ids or unknown for ids in captions] for captions in _encode(records, tokenizer)]
        if any(rows):
            rows = [captions or [unknown] for captions in rows]
        return cls(rows, max_length, tokenizer.special.pad)


def _encode(records: CaptionRecords, tokenizer: CaptionTokenizer) -> list[list[list[int]]]:
    flat = iter(tokenizer.encode_batch([text for captions in records.captions for text in captions]))
    return [[next(flat) for _ in captions] for captions in records.captions]


class CaptionDataset(Dataset[CaptionBatch]):
    """Batches of one split. ``__getitems__`` builds a whole one by indexing arrays, image by image only where it must.

    What chance decides (captions, flip, crop) depends on (seed, epoch, position of the image) alone, so neither the
    number of workers nor an interrupted run changes it.

    Attributes:
        positions: Positions of the usable images in ``records``. (N,)
    """

    def __init__(
        self,
        records: CaptionRecords,
        captions: CaptionTokens,
        size: int,
        cache: PixelCache | None,
        num_captions: int,
        training: bool,
        horizontal_flip: bool = False,
        crop_scale: float = 1.0,
        taught: CaptionTokens | None = None,
        taught_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Join tokens and pixels.

        Args:
            records: The split.
            captions: Its tokens.
            size: Side of the square images, in pixels.
            cache: Its pixels; None decodes each image when it is asked for.
            num_captions: Captions of each image in a batch.
            training: Draw captions and change images by chance; otherwise take the first captions and pass references.
            horizontal_flip: Mirror images with probability 1/2, never one with "left" or "right" in a caption.
            crop_scale: Least share of the area that a random square crop keeps; 1 crops nothing.
            taught: A teacher's captions of the same images, none of some.
            taught_share: Probability that a training caption is a teacher's, where there is one.
            seed: Seed of everything that chance decides.

        Raises:
            DataError: When no usable image is left, or at a bad image where the records say ``on_bad="raise"``.
        """
        self.records, self.captions, self.size, self.cache = records, captions, size, cache
        self.num_captions, self.training, self.seed = num_captions, training, seed
        self.crop_scale = crop_scale if training else 1.0
        self.taught, self.taught_share = taught, taught_share
        self.on_bad = getattr(records, "on_bad", "skip")
        self.image_ids = np.asarray(records.image_ids, np.int64)
        self.features: FeatureCache | None = None
        self._seen_bad: set[int] = set()
        usable = np.ones(len(self.image_ids), bool)
        skipped = Skipped(f"{records.name}: images")
        for index, reason in cache.bad if cache else getattr(records, "bad", ()):
            if self.on_bad == "raise":
                raise DataError(reason)
            usable[index] = False
            skipped.add("that cannot be decoded", reason)
        for index in np.flatnonzero(captions.counts == 0).tolist() if training else ():
            skipped.add("with no caption to learn from", f"image id {self.image_ids[index]}")
            usable[index] = False
        skipped.report()
        self.positions = np.flatnonzero(usable)
        if not len(self.positions):
            raise DataError(f"no usable image: {skipped}")
        self.may_flip = np.zeros(len(usable), bool)
        if horizontal_flip and training:
            self.may_flip[:] = [not any(map(_SIDED.search, texts)) for texts in records.captions]

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.positions)

    def __getitem__(self, index: int) -> CaptionBatch:
        """Return a batch of one, as in epoch zero; for a look by hand."""
        return self.__getitems__(BatchIndex(0, np.array([index])))

    def __getitems__(self, index: BatchIndex) -> CaptionBatch:
        """Build a batch.

        Args:
            index: The epoch, and positions among the usable images. (B,)

        Returns:
            The batch; smaller than asked for where an uncached image turns out to be bad.

        Raises:
            DataError: When none of its images can be decoded.
        """
        features, positions = None, self.positions[index.positions]
        if self.features is not None:
            features = self.features.take(index.epoch, index.positions)
            images = torch.empty(len(positions), 3, 0, 0, dtype=torch.uint8)
        else:
            images, positions = self._pixels(positions)
            if self.training:
                images = self._change(images, index.epoch, positions)
        tokens, lengths = self._choose(index.epoch, positions)
        references = [] if self.training else [list(self.records.captions[position]) for position in positions]
        return CaptionBatch(images, torch.from_numpy(self.image_ids[positions]), tokens, lengths, references, features)

    def view(self, number: int, index: np.ndarray) -> Tensor:
        """Pixels as the chance of epoch ``number`` changes them. index: among the usable images; uint8 (B, 3, S, S)."""
        positions = self.positions[index]
        images, kept = self._pixels(positions)
        if len(kept) != len(positions):
            raise DataError(f"{self.records.name}: features need pixels that were decoded before: set cache=true")
        return self._change(images, number, positions)

    def _pixels(self, positions: np.ndarray) -> tuple[Tensor, np.ndarray]:
        if self.cache is not None:
            return torch.from_numpy(self.cache.pixels[positions]), positions
        images, kept = [], []
        error = DataError(f"{self.records.name}: empty batch")
        for position in positions.tolist():
            try:
                images.append(np.asarray(self.records.load_image(position, self.size)))
                kept.append(position)
            except DataError as bad:
                if self.on_bad == "raise":
                    raise
                error = bad
                if position not in self._seen_bad:
                    self._seen_bad.add(position)
                    log_once(f"left out: {bad}", 30)
        if not images:
            raise error
        return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))), np.array(kept)

    def _choose(self, epoch: int, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pick captions, people's or a teacher's. (B, K, L) and (B, K)."""
        tokens, lengths = self._pick(self.captions, epoch, _CAPTION, positions)
        if self.taught is not None:
            places = positions[:, None] * self.num_captions + np.arange(self.num_captions)
            share = counter_uniform(self.seed, epoch, _TAUGHT, places) < self.taught_share
            share &= (self.taught.counts[positions] > 0)[:, None]
            theirs, their_lengths = self._pick(self.taught, epoch, _TEACHER, positions)
            tokens = np.where(share[..., None], theirs, tokens)
            lengths = np.where(share, their_lengths, lengths)
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(lengths)

    def _pick(
        self, captions: CaptionTokens, epoch: int, stream: int, positions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """By chance without replacement in training, else the first; cycled where too few. (B, K, L)."""
        counts = captions.counts[positions][:, None]
        columns = np.broadcast_to(
            np.arange(self.num_captions) % np.maximum(counts, 1), (len(positions), self.num_captions)
        )
        if self.training:
            width = int(captions.counts.max())
            slots = np.arange(width)
            keys = counter_uniform(self.seed, epoch, stream, positions[:, None] * width + slots)
            order = np.argsort(np.where(slots < counts, keys, 2.0), axis=1)
            columns = np.take_along_axis(order, columns, axis=1)
        rows = np.minimum(captions.first[positions][:, None] + columns, len(captions.lengths) - 1)
        return captions.tokens[rows], captions.lengths[rows]

    def _change(self, images: Tensor, epoch: int, positions: np.ndarray) -> Tensor:
        """Flip and crop by chance. (B, 3, S, S)."""

        def draw(stream: int) -> np.ndarray:
            return counter_uniform(self.seed, epoch, stream, positions)

        flipped = np.flatnonzero(self.may_flip[positions] & (draw(_FLIP) < 0.5))
        if len(flipped):
            images[flipped] = images[flipped].flip(-1)
        crop(images, self.crop_scale, draw(_SIDE), draw(_TOP), draw(_LEFT))
        return images
