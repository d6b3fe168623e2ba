"""The Lightning data modules: a source, a tokenizer, and loaders whose randomness is counted, not stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor

from fastcap.data.caches import PixelCache, cache_features
from fastcap.data.dataset import CaptionDataset, CaptionTokens, ImageDataset
from fastcap.data.errors import DataError
from fastcap.data.image_files import FolderImages
from fastcap.data.sampler import EpochSampler, ResumableLoader
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.types import CaptionRecords, CaptionSource

_EVAL_CAPTIONS = 5


class ImageDataModule(LightningDataModule):
    """Loaders of ``ImageBatch`` for pretraining a backbone; what is said of "train" and "val" is all it uses.

    Order, flips and crops follow from (seed, epoch, position of the image), so a resumed run equals an unbroken one.
    Under DDP pass ``use_distributed_sampler=False`` to the Trainer: the loaders shard by themselves.

    Args:
        source: The data set.
        folder: A folder, or several, to take every image of instead, at any depth; a twentieth is kept for validation.
        image_size: Side of the square images, in pixels.
        batch_size: Images in a training batch, of each process.
        cache: Decode every image once; False decodes in the workers, for sets too big to keep.
        cache_dir: Folder of decoded pixels, shared between runs; None keeps them in memory.
        horizontal_flip: Mirror training images at random, never one with "left" or "right" in a caption.
        crop_scale: Least share of the area that a random crop of a training image keeps; 1 crops nothing.
        num_workers: Processes that build batches; 0 builds them in this one.
        seed: Seed of all random choices, not negative.

    Raises:
        DataError: If a setting is out of range.
    """

    def __init__(
        self,
        source: CaptionSource,
        folder: str | Sequence[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        cache: bool = True,
        cache_dir: str | os.PathLike[str] | None = ".cache/pixels",
        horizontal_flip: bool = False,
        crop_scale: float = 1.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = FolderImages(folder) if folder else source
        self.image_size = self.eval_image_size = image_size
        self.batch_size = self.eval_batch_size = batch_size
        self.cache, self.cache_dir = cache, cache_dir
        self.horizontal_flip, self.crop_scale = horizontal_flip, crop_scale
        self.num_workers, self.seed = num_workers, seed
        self._check_least(1, "image_size", "batch_size")
        self._check_least(0, "seed", "num_workers")
        if not 0 < crop_scale <= 1:
            raise DataError(f"crop_scale must be in (0, 1], found {crop_scale}")
        self.validation_splits: Sequence[str] = ("val",)
        self._caption_bytes = 0  # of one image in a batch
        self._records: dict[str, CaptionRecords] = {}
        self._caches: dict[tuple[str, int], PixelCache] = {}
        self._datasets: dict[tuple[str, bool], Any] = {}

    def _check_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise DataError(f"{name} must be at least {least}, found {getattr(self, name)}")

    def records(self, split: str) -> CaptionRecords:
        """Return a split of the source, read once; raises ``DataError`` where there is none that can be read."""
        if split not in self._records:
            self._records[split] = self.source.split(split)
        return self._records[split]

    @property
    def classes(self) -> list[str]:
        """Names of the classes. Raises ``DataError`` where the images have none."""
        if classes := list(self.records("train").classes):
            return classes
        raise DataError("these images have no classes: supervised pretraining needs class folders")

    def setup(self, stage: str | None = None) -> None:
        """Read and decode, once, what ``stage`` needs: "fit" takes train and val, "validate" val, others nothing.

        Raises:
            DataError: When a split is missing, malformed or has nothing usable.
        """
        stages = {"fit": ("train", *self.validation_splits), "validate": self.validation_splits}
        for split in stages.get(stage or "", ()):
            self._dataset(split, training=split == "train")

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled full batches of "train"; raises ``DataError`` when there are too few images for one."""
        dataset = self._dataset("train", training=True)
        shuffle = not getattr(self.trainer, "overfit_batches", 0)  # overfitting: the same batches every epoch
        parts = [(np.flatnonzero(part[dataset.positions]), share) for part, share in dataset.records.shares]
        sampler = EpochSampler(len(dataset), self.batch_size, True, self.seed, shuffle, parts)
        if not len(sampler):
            raise DataError(f"train: {len(dataset)} usable images do not fill a batch_size of {self.batch_size}")
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Return "val" in order, or each validation split where there are several."""
        loaders = [self.dataloader(split) for split in self.validation_splits]
        return loaders[0] if len(loaders) == 1 else loaders

    def dataloader(self, split: str) -> ResumableLoader:
        """Return any split in order, its images unchanged, every one once, with all its references."""
        dataset = self._dataset(split, training=False)
        return self._loader(dataset, EpochSampler(len(dataset), self.eval_batch_size, training=False))

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler) -> ResumableLoader:
        size = sampler.batch_size * (3 * dataset.size**2 + self._caption_bytes)
        return ResumableLoader(dataset, sampler, self.num_workers, size)

    def _dataset(self, split: str, training: bool) -> Any:
        if (split, training) not in self._datasets:
            records, size = self.records(split), self.image_size if training else self.eval_image_size
            make = self._maker(records, training)
            if self.cache and (split, size) not in self._caches:
                self._caches[split, size] = PixelCache(records, size, self.cache_dir)
            self._datasets[split, training] = make(
                records=records,
                size=size,
                cache=self._caches.get((split, size)),
                training=training,
                horizontal_flip=self.horizontal_flip and training,
                crop_scale=self.crop_scale,
                seed=self.seed,
            )
        return self._datasets[split, training]

    def _maker(self, records: CaptionRecords, training: bool) -> Callable[..., ImageDataset]:
        """Return what makes a split's data set; whatever else is wrong with it is noticed before images are decoded."""
        return ImageDataset


class CaptionDataModule(ImageDataModule):
    """Loaders of ``CaptionBatch`` for training and for evaluating any split.

    Args:
        source: The data set.
        tokenizer: A trained one, or a function that trains one from the training captions.
        eval_image_size: Side of images wherever nothing is trained; None takes ``image_size``. Random crops make things
            look larger in training than they are: a larger side makes up for it (FixRes, Touvron et al. 2019,
            arXiv 1906.06423), and a backbone that takes any size sees more.
        eval_batch_size: Images in a batch wherever nothing is trained; None takes ``batch_size``.
        captions_per_image: Captions of an image in a training batch, drawn anew every epoch.
        max_length: Tokens of the longest caption; training leaves longer ones out, evaluation cuts them.
        feature_views: Have a frozen backbone encode so many augmented views of each training image once, kept under
            ``cache_dir``, and train on those; 0 encodes anew at every step.
        distilled_captions: Files of teachers' captions of training images, in COCO's result format (``fastcap eval
            split=train`` writes one): sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947).
        distilled_share: Probability that a caption in a training batch is a teacher's.
        **images: The other arguments of ``ImageDataModule``, and its errors.
    """

    def __init__(
        self,
        source: CaptionSource,
        tokenizer: CaptionTokenizer | Callable[[list[str]], CaptionTokenizer],
        eval_image_size: int | None = None,
        eval_batch_size: int | None = None,
        captions_per_image: int = 5,
        max_length: int = 20,
        feature_views: int = 0,
        distilled_captions: Sequence[str | os.PathLike[str]] = (),
        distilled_share: float = 0.5,
        **images: Any,
    ) -> None:
        super().__init__(source, **images)
        self.eval_image_size = self.image_size if eval_image_size is None else eval_image_size
        self.eval_batch_size = self.batch_size if eval_batch_size is None else eval_batch_size
        self.captions_per_image, self.max_length = captions_per_image, max_length
        self.feature_views, self.distilled_share = feature_views, distilled_share
        self.distilled_captions = [Path(path) for path in distilled_captions]
        self._check_least(1, "eval_image_size", "eval_batch_size", "captions_per_image", "max_length")
        self._check_least(0, "feature_views")
        if not 0 <= distilled_share <= 1:
            raise DataError(f"distilled_share must be in [0, 1], found {distilled_share}")
        self.validation_splits = source.validation_splits
        self._caption_bytes = 8 * captions_per_image * max_length
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer; trained on the captions of "train" at first use, before any image, unless it was given."""
        if not isinstance(self._tokenizer, CaptionTokenizer):
            captions = [text for texts in self.records("train").captions for text in texts]
            self._tokenizer = self._tokenizer([*captions, *self.source.text_captions()])
        return self._tokenizer

    def reference_tokens(self) -> dict[int, list[list[int]]]:
        """Token ids of each training image's captions, by image id."""
        records = self.records("train")
        tokens = self.tokenizer.encode_nested(records.captions)
        return {int(image_id): ids for image_id, ids in zip(records.image_ids, tokens, strict=True)}

    def text_tokens(self) -> tuple[list[list[int]], float]:
        """Token ids of captions without images, and how much one of them counts in n-gram tables."""
        return self.tokenizer.encode_batch(self.source.text_captions()), self.source.text_weight

    def cache_features(self, encode: Callable[[Tensor], Tensor], key: object) -> None:
        """Encode ``feature_views`` views of the training images, or find them encoded, and train on those.

        Args:
            encode: uint8 pixels (B, 3, S, S) to features (B, h, w, D).
            key: Plain data that changes whenever the encoder does.

        Raises:
            DataError: When the file cannot be written, or there is no folder for it.
        """
        if self.cache_dir is None:
            raise DataError("feature_views needs a cache_dir")
        dataset = self._dataset("train", training=True)
        name = f"{dataset.records.name}-features"
        # All that decides what the pixels of a view are, and the encoder.
        settings = [self.image_size, self.horizontal_flip, self.crop_scale, self.seed, dataset.records.fingerprint()]
        content = [settings, dataset.positions.tolist(), dataset.may_flip.nonzero()[0].tolist(), key]

        def features(view: int, index: np.ndarray) -> Tensor:
            images, positions = dataset.pixels(view, dataset.positions[index])
            if len(positions) != len(index):
                raise DataError(f"{dataset.records.name}: features need pixels that were decoded before: cache=true")
            return encode(images)

        dataset.features = cache_features(self.cache_dir, name, content, self.feature_views, len(dataset), features)

    def _maker(self, records: CaptionRecords, training: bool) -> Callable[..., ImageDataset]:
        distilled, number = None, self.captions_per_image
        if training:
            captions = CaptionTokens.for_training(records, self.tokenizer, self.max_length)
            if self.distilled_captions:
                distilled = CaptionTokens.distilled(self.distilled_captions, records, self.tokenizer, self.max_length)
        else:
            captions = CaptionTokens.for_evaluation(records, self.tokenizer, self.max_length)
            number = min(_EVAL_CAPTIONS, int(captions.counts.max(initial=0)))
        return partial(CaptionDataset, captions, number, distilled, self.distilled_share)
