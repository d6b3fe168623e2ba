"""Batches of images without captions, for pretraining a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from fastcap.data.caches import PixelCache
from fastcap.data.dataset import SplitImages, crop, flip
from fastcap.data.errors import DataError
from fastcap.data.folders import FolderImages
from fastcap.data.sampler import BatchIndex, EpochSampler, ResumableLoader
from fastcap.types import CaptionRecords
from fastcap.utils.rng import counter_uniform

_STREAMS = 4  # of counter_uniform: flip, and a crop's side, top and left


@dataclass
class ImageBatch:
    """Images of one batch.

    Attributes:
        images: Pixels, uint8, RGB. (B, 3, S, S)
        labels: Classes, -1 where there are none. (B,)
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Return the batch on ``device``."""
        return replace(self, images=self.images.to(device, non_blocking=non_blocking), labels=self.labels.to(device))

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


class ImageSource(Protocol):
    """A set of images that hands out its splits; caption sources do too."""

    def split(self, name: str) -> CaptionRecords:
        """Return "train" or "val"."""


class ImageDataset(Dataset[ImageBatch]):
    """Batches of one split, in training cropped and flipped at random by (seed, epoch, position) alone.

    Args:
        records: The split.
        size: Side of the square images, in pixels.
        cache: Its pixels; None decodes each image when it is asked for.
        training: Crop and flip at random.
        crop_scale: Least share of the area that a crop keeps.
        horizontal_flip: Mirror with probability 1/2.
        seed: Seed of all random choices.

    Raises:
        DataError: If too many images cannot be decoded.
    """

    def __init__(
        self,
        records: CaptionRecords,
        size: int,
        cache: PixelCache | None,
        training: bool,
        crop_scale: float,
        horizontal_flip: bool,
        seed: int,
    ) -> None:
        self.training, self.crop_scale, self.horizontal_flip, self.seed = training, crop_scale, horizontal_flip, seed
        self.labels = np.asarray(getattr(records, "labels", [-1] * len(records.image_ids)), np.int64)
        self.images = SplitImages(records, size, cache)
        self.positions = np.flatnonzero(self.images.usable)

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.positions)

    def __getitems__(self, index: BatchIndex) -> ImageBatch:
        """Build the batch of an epoch's positions; smaller where an uncached image turns out to be bad."""
        images, positions = self.images.read(self.positions[index.positions])
        if self.training:
            drawn = [counter_uniform(self.seed, index.epoch, stream, positions) for stream in range(_STREAMS)]
            if self.horizontal_flip:
                flip(images, drawn[0] < 0.5)
            crop(images, self.crop_scale, *drawn[1:])
        return ImageBatch(images, torch.from_numpy(self.labels[positions]))


class ImageDataModule(LightningDataModule):
    """Loaders of ``ImageBatch`` for "train" and "val".

    Args:
        source: The images, where ``folder`` names none.
        folder: A folder, or several, to take every image of instead, at any depth; a twentieth is kept for validation.
        image_size: Side of the square images, in pixels.
        batch_size: Images of one batch, of each process.
        cache: Decode all images once, before training; false decodes them each time (sets too large for the disk).
        cache_dir: Folder of decoded pixels; None keeps them in memory.
        crop_scale: Least share of the area that a random crop keeps; 1 crops nothing.
        horizontal_flip: Mirror training images at random.
        num_workers: Processes that build batches; 0 builds them in this one.
        seed: Seed of all random choices, not negative.

    Raises:
        DataError: If a setting is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: str | Sequence[str] | None = None,
        image_size: int = 160,
        batch_size: int = 32,
        cache: bool = True,
        cache_dir: str | None = ".cache/pixels",
        crop_scale: float = 0.4,
        horizontal_flip: bool = True,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"image_size": image_size, "batch_size": batch_size}.items():
            if value < 1:
                raise DataError(f"{name} must be positive, found {value}")
        if not 0 < crop_scale <= 1:
            raise DataError(f"crop_scale must be in (0, 1], found {crop_scale}")
        if seed < 0 or num_workers < 0:
            raise DataError(f"seed and num_workers must not be negative, found {seed} and {num_workers}")
        self.source: ImageSource = FolderImages(folder) if folder else source
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.cache, self.cache_dir = cache, cache_dir
        self.crop_scale, self.horizontal_flip, self.seed = crop_scale, horizontal_flip, seed
        self._records: dict[str, CaptionRecords] = {}
        self._datasets: dict[str, ImageDataset] = {}

    def records(self, split: str) -> CaptionRecords:
        """Return a split of the source, read once. Raises ``DataError`` when it cannot be read."""
        if split not in self._records:
            self._records[split] = self.source.split(split)
        return self._records[split]

    @property
    def classes(self) -> list[str]:
        """Names of the classes. Raises ``DataError`` where the images have none."""
        classes = getattr(self.records("train"), "classes", None)
        if not classes:
            raise DataError("these images have no classes: supervised pretraining needs class folders")
        return list(classes)

    def setup(self, stage: str | None = None) -> None:
        """Read and decode both splits; calling it again does nothing."""
        for split in ("train", "val"):
            self._dataset(split)

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled full batches of "train". Raises ``DataError`` when there are too few images for one."""
        dataset = self._dataset("train")
        sampler = EpochSampler(len(dataset), self.batch_size, training=True, seed=self.seed)
        if not len(sampler):
            raise DataError(f"train: {len(dataset)} usable images do not fill a batch_size of {self.batch_size}")
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> ResumableLoader:
        """Return "val" in order."""
        dataset = self._dataset("val")
        return self._loader(dataset, EpochSampler(len(dataset), self.batch_size, training=False))

    def _loader(self, dataset: Dataset[Any], sampler: EpochSampler) -> ResumableLoader:
        return ResumableLoader(dataset, sampler, self.num_workers, 3 * sampler.batch_size * self.image_size**2)

    def _dataset(self, split: str) -> ImageDataset:
        if split not in self._datasets:
            records = self.records(split)
            cache = PixelCache(records, self.image_size, self.cache_dir) if self.cache else None
            self._datasets[split] = ImageDataset(
                records, self.image_size, cache, split == "train", self.crop_scale, self.horizontal_flip, self.seed
            )
        return self._datasets[split]
