"""What is computed once for a split and mapped into memory: its pixels at one size, a frozen encoder's features."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.data.errors import DataError, ProgressLog
from fastcap.types import CaptionRecords
from fastcap.utils.files import atomic_write, write_text

_PIXELS_VERSION = 3  # raise when decode_image changes what it returns: caches are then rebuilt
_CHUNK = 512  # images decoded between two looks at the clock; bounds the memory in flight
_FEATURES_VERSION = 1  # raise when what is stored of features changes
_BATCH = 32  # images encoded at once


def decode_all(records: CaptionRecords, size: int, num_threads: int | None = None) -> Iterator[np.ndarray | DataError]:
    """Yield every image of a split in order, decoded in threads, or the reason why it cannot be. (S, S, 3)."""

    def decode(index: int) -> np.ndarray | DataError:
        try:
            return np.asarray(records.load_image(index, size))
        except DataError as error:
            return error

    total = len(records.image_ids)
    progress = ProgressLog(f"{records.name}: decoded at {size} px:", total)
    # Threads: Pillow lets go of the interpreter to decode.
    with ThreadPoolExecutor(num_threads or min(8, os.cpu_count() or 1)) as pool:
        for low in range(0, total, _CHUNK):
            high = min(low + _CHUNK, total)
            yield from pool.map(decode, range(low, high))
            progress.update(high)
    progress.finish()


class PixelCache:
    """Every image of a split at one size, decoded once.

    With a cache folder the pixels lie in a ``.npy`` file there and are mapped into memory, so that runs and workers
    share them; the file is named by the records' fingerprint and the size, appears at once when complete, and is
    rebuilt when cut short. Without a folder they lie in memory.

    Attributes:
        pixels: Decoded pixels, uint8; a bad image's are zero. (N, 3, S, S)
        bad: Images that could not be decoded: position and reason.
    """

    def __init__(
        self,
        records: CaptionRecords,
        size: int,
        cache_dir: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Map the cached pixels of ``records``, decoding them first where there are none.

        Args:
            records: The split to decode.
            size: Side of the square images, in pixels.
            cache_dir: Folder of the cache files, made when missing; None keeps the pixels in memory.
            num_threads: Threads that decode; None takes one a core, eight at most.

        Raises:
            DataError: When the cache file cannot be written.
        """
        self.records, self.size = records, size
        self.bad: list[tuple[int, str]] = []
        self._threads = num_threads
        self._shape = (len(records.image_ids), 3, size, size)
        if cache_dir is None:
            self.pixels = np.empty(self._shape, np.uint8)
            for index, image in enumerate(self._decoded()):
                self.pixels[index] = image
            return
        key = hashlib.sha256(json.dumps([_PIXELS_VERSION, records.fingerprint(), size]).encode()).hexdigest()[:24]
        self.path = Path(cache_dir) / f"{records.name}-{size}px-{key}.npy"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")):  # a second run waits for the first instead of decoding too
                self.pixels = self._read() if self._is_complete() else self._build()
        except OSError as error:
            raise DataError(f"{self.path}: pixel cache cannot be written ({error}); set another cache_dir") from error

    def _build(self) -> np.ndarray:
        self.bad = []
        with atomic_write(self.path) as part, open(part, "wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(self._empty()))
            for image in self._decoded():
                file.write(np.ascontiguousarray(image).data)
        # Last: its presence says that the pixels are whole.
        write_text(self.path.with_suffix(".json"), json.dumps({"shape": self._shape, "bad": self.bad}))
        return self._read()

    def _is_complete(self) -> bool:
        try:
            with open(self.path.with_suffix(".json")) as file:
                about = json.load(file)
            if tuple(about["shape"]) != self._shape or self._read().shape != self._shape:
                return False
            self.bad = [(int(index), str(reason)) for index, reason in about["bad"]]
            return True
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False

    def _read(self) -> np.ndarray:
        if not len(self.records.image_ids):
            return self._empty()
        return np.load(self.path, mmap_mode="r")

    def _empty(self) -> np.ndarray:
        return np.broadcast_to(np.uint8(0), self._shape) if self._shape[0] else np.empty(self._shape, np.uint8)

    def _decoded(self) -> Iterator[np.ndarray]:
        """Yield the images in order, channels first, noting the bad ones. (3, S, S)."""
        for index, image in enumerate(decode_all(self.records, self.size, self._threads)):
            if isinstance(image, DataError):
                self.bad.append((index, str(image)))
                yield np.zeros(self._shape[1:], np.uint8)
            else:
                yield image.transpose(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped pixels out of a pickle: a spawned worker maps them again."""
        return self.__dict__ | ({"pixels": None} if hasattr(self, "path") else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pixels again."""
        self.__dict__.update(state)
        if self.pixels is None:
            self.pixels = self._read()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; where there are none (Windows, some network disks) go on without."""
    with open(path, "a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class FeatureCache:
    """Feature grids of several augmented views of every image, in half precision in a mapped file.

    View v holds the images as epoch v changes them; a run takes view (epoch + position) mod V.

    Attributes:
        features: float16. (V, N, h, w, D)
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        name: str,
        key: object,
        num_views: int,
        num_images: int,
        encode: Callable[[int, np.ndarray], Tensor],
    ) -> None:
        """Map the file, encoding the images first where there is none.

        Args:
            cache_dir: Its folder, made when missing.
            name: What the file's name begins with.
            key: Plain data that changes whenever the features would, the precision that they are computed in included.
            num_views: Views V.
            num_images: Images N.
            encode: A view's number and positions of images (B,) to their features (B, h, w, D).

        Raises:
            DataError: When the file cannot be written; too little space is noticed after the first images.
        """
        digest = hashlib.sha256(json.dumps([_FEATURES_VERSION, key, num_views, num_images]).encode()).hexdigest()[:24]
        self.path = Path(cache_dir) / f"{name}-{digest}.npy"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")):  # a second run waits for the first
                if not self.path.exists():
                    self._build(num_views, num_images, encode)
        except OSError as error:
            raise DataError(f"{self.path}: feature cache cannot be written ({error}); set another cache_dir") from error
        try:
            self.features = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: feature cache cannot be read ({error}); delete it") from error

    def take(self, epoch: int, positions: np.ndarray) -> Tensor:
        """Return the features of some images in an epoch. positions: (B,); returns float16 (B, h, w, D)."""
        return torch.from_numpy(self.features[(epoch + positions) % len(self.features), positions])

    def _build(self, num_views: int, num_images: int, encode: Callable[[int, np.ndarray], Tensor]) -> None:
        total = num_views * num_images
        progress = ProgressLog(f"{self.path.name}: encoded", total)
        with atomic_write(self.path) as part, open(part, "wb") as file:
            for view in range(num_views):
                for low in range(0, num_images, _BATCH):
                    positions = np.arange(low, min(low + _BATCH, num_images))
                    with torch.inference_mode():
                        grids = np.ascontiguousarray(encode(view, positions).half().cpu().numpy())
                    if view == low == 0:
                        self._check_space(total * grids[0].nbytes)
                        shape = (num_views, num_images, *grids.shape[1:])
                        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(grids.data)
                    progress.update(view * num_images + low + len(positions))
        progress.finish()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
