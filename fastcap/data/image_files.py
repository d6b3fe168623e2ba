"""Image files without captions: a folder of any depth, or ImageNet's class folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import ImageFolder

from fastcap.data.errors import DataError
from fastcap.data.pixels import decode_image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageFiles:
    """Image files of one split; satisfies what a pixel cache asks of ``CaptionRecords``.

    Attributes:
        paths: The files.
        labels: Class of each file, -1 for none.
        classes: Names of the classes.
    """

    def __init__(self, name: str, paths: Sequence[Path], labels: Sequence[int], classes: Sequence[str] = ()) -> None:
        self.name, self.paths, self.labels, self.classes = name, paths, labels, list(classes)
        self.image_ids: Sequence[int] = range(len(paths))
        self.captions: Sequence[Sequence[str]] = [[]] * len(paths)

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Decode image ``index``, squashed to a square; (size, size, 3). Raises ``DataError`` naming the file."""
        return decode_image(self.paths[index], size)

    def fingerprint(self) -> str:
        """Digest of every file's path, size and time of change."""
        digest = hashlib.sha256()
        for path in self.paths:
            stat = path.stat()
            digest.update(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class FolderImages:
    """Every image below a folder, at any depth; every so many-th is kept for validation.

    Args:
        root: The folder.
        val_share: Share of the images that make "val"; at least one image.

    Raises:
        DataError: If the share is out of range.
    """

    def __init__(self, root: str | os.PathLike[str], val_share: float = 0.05) -> None:
        self.root, self.val_share = Path(root).expanduser(), val_share
        if not 0 < val_share < 1:
            raise DataError(f"val_share must be between 0 and 1, found {val_share}")

    def split(self, name: str) -> ImageFiles:
        """Return "train" or "val".

        Raises:
            DataError: If the folder is missing or holds fewer than two images.
        """
        if not self.root.is_dir():
            raise DataError(f"{self.root}: image folder is missing")
        paths = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if len(paths) < 2:
            raise DataError(f"{self.root}: {len(paths)} images in this folder, at least 2 are needed")
        every = min(max(2, round(1 / self.val_share)), len(paths))
        chosen = [path for i, path in enumerate(paths) if (i % every == every // 2) == (name == "val")]
        return ImageFiles(name, chosen, [-1] * len(chosen))


class ClassFolders:
    """ImageNet's layout: ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    Args:
        root: The folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()

    def split(self, name: str) -> ImageFiles:
        """Return "train" or "val".

        Raises:
            DataError: If the folder is missing, a class is empty, or val names other classes than train.
        """
        found = self._read(name)
        if name != "train" and found.classes != (classes := self._read("train").classes):
            odd = sorted(set(found.classes) ^ set(classes))
            raise DataError(f"{self.root / name}: other classes than {self.root / 'train'}: {', '.join(odd[:5])}")
        return ImageFiles(name, [Path(p) for p, _ in found.samples], [c for _, c in found.samples], found.classes)

    def _read(self, name: str) -> ImageFolder:
        folder = self.root / name
        if not folder.is_dir():
            raise DataError(f"{folder}: folder of class folders is missing")
        try:
            return ImageFolder(folder)
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {error}") from error
