"""Image files of a split, and sets of images without captions: folders of any depth, or ImageNet's class folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcap.data.errors import MAX_SKIPPED, DataError
from fastcap.data.image_files import find_images
from fastcap.data.pixels import decode_image
from fastcap.types import CaptionRecords, CaptionSource


class FileRecords(CaptionRecords):
    """One split whose images are files; attributes are those of ``CaptionRecords``."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        num_skipped: int,
        max_skipped: float,
        image_ids: Sequence[int] | None = None,
        captions: Sequence[Sequence[str]] | None = None,
        labels: Sequence[int] = (),
        classes: Sequence[str] = (),
    ) -> None:
        """Hold what was found and checked; without ``image_ids`` positions are ids."""
        self.name, self.paths, self.num_skipped, self.max_skipped = name, paths, num_skipped, max_skipped
        self.image_ids = range(len(paths)) if image_ids is None else image_ids
        self.captions = [[]] * len(paths) if captions is None else captions
        self.labels, self.classes = labels, classes

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Decode image ``index``, squashed to a square; (size, size, 3). Raises ``DataError`` naming the file."""
        return decode_image(self.paths[index], size)

    def fingerprint(self) -> str:
        """Digest of every image file's path, size and time of change."""
        wanted, stats = set(self.paths), {}
        for folder in {path.parent for path in self.paths}:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if (path := folder / entry.name) in wanted:
                        with contextlib.suppress(OSError):  # a link to nothing, or in a circle
                            found = entry.stat()
                            stats[path] = (found.st_size, found.st_mtime_ns)
        lines = [f"{os.path.abspath(path)} {stats.get(path)}" for path in self.paths]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class FolderImages(CaptionSource):
    """Every image below folders, at any depth; every so many-th is kept for validation.

    Args:
        roots: The folder, or several.
        val_share: Share of the images that make "val"; at least one image.
        max_skipped: Share of the images that may be left out because they cannot be read.

    Raises:
        DataError: If a share is out of range.
    """

    def __init__(
        self,
        roots: str | os.PathLike[str] | Sequence[str],
        val_share: float = 0.05,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        places = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
        self.roots = [Path(place).expanduser() for place in places]
        self.val_share, self.max_skipped = val_share, max_skipped
        if not 0 < val_share < 1:
            raise DataError(f"val_share must be between 0 and 1, found {val_share}")

    def split(self, name: str) -> FileRecords:
        """Return "train" or "val".

        Raises:
            DataError: If a folder is missing, they hold fewer than two images, or too many that cannot be read.
        """
        paths, num_skipped = _images_below(self.roots, self.max_skipped)
        if len(paths) < 2:
            raise DataError(f"{self.roots[0]}: {len(paths)} images in this folder, at least 2 are needed")
        every = min(max(2, round(1 / self.val_share)), len(paths))
        chosen = [path for i, path in enumerate(paths) if (i % every == every // 2) == (name == "val")]
        return FileRecords(name, chosen, num_skipped, self.max_skipped)


class ClassFolders(CaptionSource):
    """ImageNet's layout: ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    Args:
        root: The folder.
        max_skipped: Share of the images that may be left out because they cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], max_skipped: float = MAX_SKIPPED) -> None:
        self.root, self.max_skipped = Path(root).expanduser(), max_skipped

    def split(self, name: str) -> FileRecords:
        """Return "train" or "val".

        Raises:
            DataError: If the folder is missing, a class is empty, or val names other classes than train.
        """
        folder, classes = self.root / name, self._classes("train")
        if name != "train" and (found := self._classes(name)) != classes:
            odd = sorted(set(found) ^ set(classes))
            raise DataError(f"{folder}: other classes than {self.root / 'train'}: {', '.join(odd[:5])}")
        paths: list[Path] = []
        labels: list[int] = []
        num_skipped = 0
        for label, each in enumerate(classes):
            inside, left_out = _images_below([folder / each], max_skipped=1.0)
            paths += inside
            labels += [label] * len(inside)
            num_skipped += left_out
        return FileRecords(name, paths, num_skipped, self.max_skipped, labels=labels, classes=classes)

    def _classes(self, name: str) -> list[str]:
        folder = self.root / name
        if not folder.is_dir():
            raise DataError(f"{folder}: folder of class folders is missing")
        classes = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        if not classes:
            raise DataError(f"{folder}: no class folder in it")
        return classes


def _images_below(roots: Sequence[Path], max_skipped: float) -> tuple[list[Path], int]:
    """Find the images below folders; returns them and how many images were left out."""
    for root in roots:
        if not root.is_dir():
            raise DataError(f"{root}: image folder is missing")
    found = find_images(roots)
    found.hidden.report()
    found.unreadable.check(len(found.files) + found.unreadable.total, max_skipped)
    return found.files, found.unreadable.total
