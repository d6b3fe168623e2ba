"""One split, ready to be batched: token ids of its captions, pixels of its images, and random changes of both."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcap.data.captions import CaptionTokens
from fastcap.data.errors import DataError
from fastcap.data.features import FeatureCache
from fastcap.data.pixel_cache import PixelCache
from fastcap.data.sampler import BatchIndex
from fastcap.data.split_images import SplitImages, crop, flip
from fastcap.types import CaptionBatch, CaptionRecords
from fastcap.utils.rng import counter_uniform

_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_CAPTION, _FLIP, _SIDE, _TOP, _LEFT, _DISTILLED, _TEACHER = range(7)  # streams of counter_uniform


class CaptionDataset(Dataset[CaptionBatch]):
    """Batches of one split. ``__getitems__`` builds a whole one by indexing arrays, image by image only where it must.

    Random choices (captions, flip, crop) depend on (seed, epoch, position of the image) alone, so neither the number of
    workers nor an interrupted run changes them.

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
        distilled: CaptionTokens | None = None,
        distilled_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        """Join tokens and pixels.

        Args:
            records: The split.
            captions: Its tokens.
            size: Side of the square images, in pixels.
            cache: Its pixels; None decodes each image when it is asked for.
            num_captions: Captions of each image in a batch.
            training: Draw captions and change images at random; otherwise take the first captions and pass references.
            horizontal_flip: Mirror images with probability 1/2, never one with "left" or "right" in a caption.
            crop_scale: Least share of the area that a random square crop keeps; 1 crops nothing.
            distilled: A teacher's captions of the same images, none of some.
            distilled_share: Probability that a training caption is a teacher's, where there is one.
            seed: Seed of all random choices.

        Raises:
            DataError: When too many images cannot be used.
        """
        self.records, self.captions = records, captions
        self.num_captions, self.training, self.seed = num_captions, training, seed
        self.crop_scale = crop_scale if training else 1.0
        self.distilled, self.distilled_share = distilled, distilled_share
        self.image_ids = np.asarray(records.image_ids, np.int64)
        self.features: FeatureCache | None = None
        self.images = SplitImages(records, size, cache)
        if training:
            silent = np.flatnonzero(captions.counts == 0).tolist()
            reason = "with no caption to learn from"
            self.images.leave_out([(index, reason, f"image id {self.image_ids[index]}") for index in silent])
        self.positions = np.flatnonzero(self.images.usable)
        self.may_flip = np.zeros(len(self.image_ids), bool)
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
            images, positions = self.images.read(positions)
            if self.training:
                self._change(images, index.epoch, positions)
        tokens, lengths = self._choose(index.epoch, positions)
        references = [] if self.training else [list(self.records.captions[position]) for position in positions]
        return CaptionBatch(images, torch.from_numpy(self.image_ids[positions]), tokens, lengths, references, features)

    def view(self, epoch: int, index: np.ndarray) -> Tensor:
        """Return pixels as an epoch changes them. index: among the usable images; uint8 (B, 3, S, S)."""
        positions = self.positions[index]
        images, kept = self.images.read(positions)
        if len(kept) != len(positions):
            raise DataError(f"{self.records.name}: features need pixels that were decoded before: set cache=true")
        self._change(images, epoch, positions)
        return images

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

    def _change(self, images: Tensor, epoch: int, positions: np.ndarray) -> None:
        """Flip and crop in place, at random. images: (B, 3, S, S)."""
        drawn = [counter_uniform(self.seed, epoch, stream, positions) for stream in (_FLIP, _SIDE, _TOP, _LEFT)]
        flip(images, self.may_flip[positions] & (drawn[0] < 0.5))
        crop(images, self.crop_scale, *drawn[1:])
