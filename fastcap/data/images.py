"""Batches of images without captions, for pretraining a backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from fastcap.data.augment import crop
from fastcap.data.errors import DataError, Skipped, log_once
from fastcap.data.image_files import FolderImages
from fastcap.data.pixels import PixelCache
from fastcap.data.sampler import BatchIndex, EpochSampler, ResumableLoader
from fastcap.types import CaptionRecords
from fastcap.utils.rng import counter_uniform

_FLIP, _SIDE, _TOP, _LEFT = range(4)  # streams of counter_uniform


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
    """Batches of one split: in training cropped and flipped by chance that depends on (seed, epoch, position) alone.

    Args:
        records: The split.
        size: Side of the square images, in pixels.
        cache: Its pixels; None decodes each image when it is asked for.
        training: Crop and flip by chance.
        crop_scale: Least share of the area that a crop keeps.
        horizontal_flip: Mirror with probability 1/2.
        seed: Seed of everything that chance decides.

    Raises:
        DataError: If no image can be decoded.
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
        self.records, self.size, self.cache, self.training = records, size, cache, training
        self.crop_scale, self.horizontal_flip, self.seed = crop_scale, horizontal_flip, seed
        self.labels = np.asarray(getattr(records, "labels", [-1] * len(records.image_ids)), np.int64)
        self._seen_bad: set[int] = set()
        skipped = Skipped(f"{records.name}: images")
        for _, reason in cache.bad if cache else ():
            skipped.add("that cannot be decoded", reason)
        skipped.report()
        self.positions = np.setdiff1d(np.arange(len(self.labels)), [index for index, _ in cache.bad] if cache else [])
        if not len(self.positions):
            raise DataError(f"no usable image: {skipped}")

    def __len__(self) -> int:
        """Number of usable images."""
        return len(self.positions)

    def __getitems__(self, index: BatchIndex) -> ImageBatch:
        """Build the batch of an epoch's positions; smaller where an uncached image turns out to be bad."""
        images, positions = self._pixels(self.positions[index.positions.astype(np.int64)])
        if self.training:
            draws = [counter_uniform(self.seed, index.epoch, stream, positions) for stream in range(4)]
            flipped = np.flatnonzero(draws[_FLIP] < 0.5)
            if self.horizontal_flip and len(flipped):
                images[flipped] = images[flipped].flip(-1)
            crop(images, self.crop_scale, draws[_SIDE], draws[_TOP], draws[_LEFT])
        return ImageBatch(images, torch.from_numpy(self.labels[positions]))

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
                error = bad
                if position not in self._seen_bad:
                    self._seen_bad.add(position)
                    log_once(f"left out: {bad}", 30)
        if not images:
            raise error
        return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))), np.array(kept)


class ImageDataModule(LightningDataModule):
    """Loaders of ``ImageBatch`` for "train" and "val".

    Args:
        source: The images, where ``folder`` names none.
        folder: A folder to take every image of instead, at any depth; a twentieth is kept for validation.
        image_size: Side of the square images, in pixels.
        batch_size: Images of one batch, of each process.
        cache: Decode all images once, before training; false decodes them each time (sets too large for the disk).
        cache_dir: Folder of decoded pixels; None keeps them in memory.
        crop_scale: Least share of the area that a random crop keeps; 1 crops nothing.
        horizontal_flip: Mirror training images by chance.
        num_workers: Processes that build batches; 0 builds them in this one.
        seed: Seed of everything that chance decides, not negative.

    Raises:
        DataError: If a setting is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        folder: str | None = None,
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
        workers, pin = self.num_workers, torch.cuda.is_available()
        return ResumableLoader(dataset, sampler, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin)

    def _dataset(self, split: str) -> ImageDataset:
        if split not in self._datasets:
            records = self.records(split)
            cache = PixelCache(records, self.image_size, self.cache_dir) if self.cache else None
            self._datasets[split] = ImageDataset(
                records, self.image_size, cache, split == "train", self.crop_scale, self.horizontal_flip, self.seed
            )
        return self._datasets[split]
