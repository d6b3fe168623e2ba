"""What is computed once for a split and mapped into memory: its pixels at one size, a frozen encoder's features."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.data.errors import DataError, ProgressLog
from fastcap.types import CaptionRecords
from fastcap.utils.files import atomic_write, write_text

_PIXELS_VERSION = 4  # raise when decode_image changes what it returns: caches are then rebuilt
_CHUNK = 512  # images decoded between two looks at the clock; bounds the memory in flight
_FEATURES_VERSION = [_PIXELS_VERSION, 1]  # of those pixels; raise the second when what is stored of features changes
_BATCH = 32  # images encoded at once


class PixelCache:
    """Every image of a split at one size, decoded once.

    With a cache folder the pixels lie in a ``.npy`` file there and are mapped into memory, so that runs and workers
    share them; the file is named by the records' fingerprint and the size, appears at once when complete, and is
    rebuilt when cut short. Without a folder they lie in memory. A file that cannot be written is a ``DataError``.

    Attributes:
        pixels: Decoded pixels, uint8; a bad image's are zero. (N, 3, S, S)
        bad: Images that could not be decoded: position and reason.
    """

    def __init__(self, records: CaptionRecords, size: int, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.bad: list[tuple[int, str]] = []
        shape = (len(records), 3, size, size)
        if cache_dir is None or not len(records):
            self.pixels = np.empty(shape, np.uint8)
            for index, image in enumerate(self._decoded(records, size)):
                self.pixels[index] = image
            return
        key = [_PIXELS_VERSION, records.fingerprint(), size]
        with _cache_file(cache_dir, f"{records.name}-{size}px", key, "pixel") as self.path:
            about = self.path.with_suffix(".json")
            try:
                self.pixels = np.load(self.path, mmap_mode="r")
                self.bad = [(index, reason) for index, reason in json.loads(about.read_text("utf-8"))["bad"]]
            except (OSError, ValueError, EOFError):  # there is none, or it was cut short
                _write_array(self.path, shape, np.uint8, self._decoded(records, size))
                write_text(about, json.dumps({"bad": self.bad}))  # last: its presence says that the pixels are whole
                self.pixels = np.load(self.path, mmap_mode="r")

    def _decoded(self, records: CaptionRecords, size: int) -> Iterator[np.ndarray]:
        """Yield the images (3, S, S) in order, decoded in threads, noting the bad ones."""

        def decode(index: int) -> np.ndarray | DataError:
            try:
                return np.asarray(records.load_image(index, size))
            except DataError as error:
                return error

        progress = ProgressLog(f"{records.name}: decoded at {size} px:", len(records))
        # Threads: Pillow lets go of the interpreter to decode.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for low in range(0, len(records), _CHUNK):
                high = min(low + _CHUNK, len(records))
                for index, image in enumerate(pool.map(decode, range(low, high)), start=low):
                    if isinstance(image, DataError):
                        self.bad.append((index, str(image)))
                        image = np.zeros((size, size, 3), np.uint8)
                    yield image.transpose(2, 0, 1)
                progress.update(high)
        progress.finish()

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped pixels out of a pickle: a spawned worker maps them again."""
        return self.__dict__ | ({"pixels": None} if hasattr(self, "path") else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pixels again."""
        self.__dict__.update(state)
        if self.pixels is None:
            self.pixels = np.load(self.path, mmap_mode="r")


def cache_features(
    cache_dir: str | os.PathLike[str],
    name: str,
    key: object,
    num_views: int,
    num_images: int,
    encode: Callable[[int, np.ndarray], Tensor],
) -> np.ndarray:
    """Map the feature grids of several augmented views of every image, encoding the images first if there are none.

    View v holds the images as epoch v changes them; a run takes view (epoch + position) mod V.

    Args:
        cache_dir: The file's folder, made when missing.
        name: What its name begins with.
        key: Plain data that changes whenever the features would, the precision that they are computed in included.
        num_views: Views V.
        num_images: Images N.
        encode: A view's number and positions of images (B,) to their features (B, h, w, D).

    Returns:
        float16. (V, N, h, w, D)

    Raises:
        DataError: When the file cannot be written or read; too little space is noticed after the first images.
    """

    def grids(progress: ProgressLog) -> Iterator[np.ndarray]:
        for view in range(num_views):
            for low in range(0, num_images, _BATCH):
                positions = np.arange(low, min(low + _BATCH, num_images))
                with torch.inference_mode():
                    yield encode(view, positions).half().cpu().numpy()
                progress.update(view * num_images + low + len(positions))
        progress.finish()

    with _cache_file(cache_dir, name, [_FEATURES_VERSION, key, num_views, num_images], "feature") as path:
        if not path.exists():
            batches = grids(ProgressLog(f"{path.name}: encoded", num_views * num_images))
            first = next(batches)
            needed, free = num_views * num_images * first[0].nbytes, shutil.disk_usage(path.parent).free
            if needed > free:
                raise OSError(errno.ENOSPC, f"it takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
            shape = (num_views, num_images, *first.shape[1:])
            _write_array(path, shape, np.float16, itertools.chain([first], batches))
    try:
        features: np.ndarray = np.load(path, mmap_mode="r")
        return features
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: feature cache cannot be read ({error}); delete it") from error


@contextlib.contextmanager
def _cache_file(cache_dir: str | os.PathLike[str], name: str, key: object, kind: str) -> Iterator[Path]:
    """Yield where what ``key`` describes is kept, locked: a second run waits for the first instead of computing it too.

    A folder or file that cannot be written is a ``DataError``.
    """
    path = Path(cache_dir) / f"{name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "a") as file:
            with contextlib.suppress(OSError):  # no locks on some network disks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield path
    except OSError as error:
        raise DataError(f"{path}: {kind} cache cannot be written ({error}); set another cache_dir") from error


def _write_array(path: Path, shape: Sequence[int], kind: type[np.generic], pieces: Iterable[np.ndarray]) -> None:
    """Write a ``.npy`` file piece by piece; unlike writes to mapped memory, a full disk is an error, not a crash."""
    with atomic_write(path) as part, open(part, "wb") as file:
        header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
