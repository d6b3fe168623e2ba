"""A COCO-format caption set whose images come out of shards: captions from the JSON, pixels from litdata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed

from fastcap.data.coco import CocoCaptions, parse_annotations
from fastcap.data.errors import DataError, Skipped
from fastcap.data.pixels import locked
from fastcap.data.shards import ABOUT, ShardReader, is_remote, read_about, write_shards


class ShardedRecords:
    """One split in shards; satisfies ``fastcap.types.CaptionRecords``.

    Attributes:
        name: Name of the split.
        image_ids: Image ids, in the order of the annotations.
        captions: Captions of each image, white space normalised.
        bad: Positions that could not be decoded when the shards were written, each with its reason.
        shards: Number of the shard that holds each image. (N,)
        shuffle_shards: Shards that training shuffles together; None shuffles the whole split.
        on_bad: What to do with a record that cannot be used: "skip" or "raise".
    """

    def __init__(
        self,
        name: str,
        image_ids: Sequence[int],
        captions: Sequence[Sequence[str]],
        reader: ShardReader,
        about: Mapping[str, Any],
        shuffle_shards: int | None,
        on_bad: str,
    ) -> None:
        self.name, self.image_ids, self.captions, self.on_bad = name, image_ids, captions, on_bad
        self.reader, self.shuffle_shards = reader, shuffle_shards
        place = {image_id: position for position, image_id in enumerate(about["image_ids"])}
        positions = np.array([place[image_id] for image_id in image_ids])
        self.bad = [(i, about["bad"][int(p)]) for i, p in enumerate(positions) if int(p) in about["bad"]]
        good = np.ones(len(about["image_ids"]), bool)
        good[list(about["bad"])] = False
        # Number of each image in the shards, which hold the good ones alone.
        self.items = (np.cumsum(good) - good)[positions]
        ends = np.cumsum([count for *_, count in about["shards"]])
        self.shards = np.searchsorted(ends, self.items, side="right").clip(max=len(ends) - 1)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Read image ``index`` (position, not id); (size, size, 3).

        Raises:
            DataError: Naming the image, when it cannot be read or the shards are of another size.
        """
        if size != self.reader.size:
            raise DataError(f"{self.reader.place}: images of {self.reader.size} px, asked for {size}")
        return self.reader.read(int(self.items[index]), int(self.image_ids[index]))

    def fingerprint(self) -> str:
        """Digest of where the shards lie and which images of theirs these are."""
        parts = [self.reader.place, self.reader.size, self.reader.quality, list(self.image_ids)]
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()


class StreamingCaptions:
    """A caption set in COCO's format with its images in shards, on disk or in an object store.

    ``shards`` holds a folder for each split, size and quality: ``train-224px``, ``val-224px-q95``. Where it is a local
    folder that lacks one, the shards are written at first use from the images below ``root``. They are taken as they
    are afterwards: when images change, delete the folder.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        shards: str,
        size: int,
        images: str | Mapping[str, str] = "images",
        annotations: Mapping[str, str] | None = None,
        on_bad: str = "skip",
        max_images: Mapping[str, int] | int | None = None,
        quality: int | None = None,
        shard_mb: int = 64,
        shuffle_shards: int | None = None,
        cache_dir: str | os.PathLike[str] = ".cache/shards",
    ) -> None:
        """Describe where the set lies; nothing is read before ``split``.

        Args:
            root: Data folder, with the annotations; with the images only where shards are to be written.
            shards: Folder of the shards, or its address (s3://..., gs://..., azure://..., r2://...).
            size: Side of the square images, in pixels; the data module's ``image_size``.
            images: As in ``CocoCaptions``.
            annotations: As in ``CocoCaptions``.
            on_bad: As in ``CocoCaptions``.
            max_images: Use only the first so many images of each split, or of the splits named; shards hold all.
            quality: JPEG quality inside the shards, 1 to 100; None keeps the pixels as they are.
            shard_mb: Size of the shards that are written, in MB.
            shuffle_shards: None shuffles a whole split, as without shards. A number shuffles the order of the shards,
                then the images of so many neighbours: an epoch then meets the shards one after the other, and each
                process only its share of them.
            cache_dir: Where shards of an object store are kept; it must have room for those that are read.

        Raises:
            DataError: When a setting is out of range.
        """
        self.source = CocoCaptions(root, images, annotations, on_bad, max_images)
        self.place, self.size, self.quality, self.shard_mb = shards, size, quality, shard_mb
        self.shuffle_shards, self.cache_dir = shuffle_shards, cache_dir
        if quality is not None and not 1 <= quality <= 100:
            raise DataError(f"quality must be 1 to 100 or null, found {quality}")
        for name, value in {"size": size, "shard_mb": shard_mb, "shuffle_shards": shuffle_shards}.items():
            if value is not None and not 1 <= value < 4096:
                raise DataError(f"{name} must be 1 to 4095, found {value}")

    def folder(self, name: str) -> str:
        """Place of one split's shards."""
        kind = f"{name}-{self.size}px" + ("" if self.quality is None else f"-q{self.quality}")
        return f"{self.place.rstrip('/')}/{kind}"

    def write(self, name: str) -> dict[str, Any]:
        """Write one split's shards, all images of the split, unless they are there; returns what they hold.

        Raises:
            DataError: When the images cannot be read or the shards not written.
        """
        place = self.folder(name)
        if is_remote(place):
            raise DataError(f"{place}: shards are written into a local folder; copy them to a store from there")
        if (Path(place) / ABOUT).is_file():
            return read_about(place)
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise DataError(f"{place}: no shards here; write them before several processes start: fastcap shards")
        folder = Path(place)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent / f".{folder.name}.lock"):  # a second run waits for the first
                if not (folder / ABOUT).is_file():
                    whole = CocoCaptions(
                        self.source.root, self.source.images, self.source.annotations, self.source.on_bad
                    )
                    write_shards(whole.split(name), folder, self.size, self.quality, self.shard_mb)
        except OSError as error:
            raise DataError(f"{place}: shards cannot be written ({error}); set another `shards`") from error
        return read_about(place)

    def split(self, name: str) -> ShardedRecords:
        """Read one split's captions and open its shards, written first where they are local and absent.

        Raises:
            DataError: When the captions or shards are missing or malformed, or nothing usable is left.
        """
        source = self.source.annotation_file(name)
        place = self.folder(name)
        about = read_about(place) if is_remote(place) else self.write(name)
        if about["size"] != self.size or about["quality"] != self.quality:
            raise DataError(f"{place}/{ABOUT}: size {about['size']} and quality {about['quality']} are not its name's")
        files, captions, empty = parse_annotations(source, need_files=False)
        skipped, held = Skipped(f"{source} ({name})"), set(about["image_ids"])
        for where in empty:
            self.source.leave_out(skipped, "empty captions", f"{source}: {where}.caption is empty")
        usable = []
        for image_id in files:
            if not captions[image_id]:
                self.source.leave_out(skipped, "images without a caption", f"{source}: image id {image_id}")
            elif image_id not in held:
                self.source.leave_out(skipped, "images that no shard holds", f"{place}: image id {image_id}")
            else:
                usable.append(image_id)
        skipped.report()
        if not usable:
            raise DataError(f"no usable image: {skipped}" if skipped.counts else f"{source}: images is empty")
        usable = usable[: self.source.limit(name)]
        return ShardedRecords(
            name,
            usable,
            [captions[image_id] for image_id in usable],
            ShardReader(place, about, self.cache_dir),
            about,
            self.shuffle_shards,
            self.source.on_bad,
        )
