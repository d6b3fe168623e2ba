"""A frozen encoder's features of the training images, computed once: what follows then trains in minutes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcap.data.errors import DataError, ProgressLog
from fastcap.data.pixel_cache import locked
from fastcap.utils.files import atomic_write

_VERSION = 1  # raise when what is stored changes: caches are then rebuilt
_BATCH = 32  # images encoded at once


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
        digest = hashlib.sha256(json.dumps([_VERSION, key, num_views, num_images]).encode()).hexdigest()[:24]
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
