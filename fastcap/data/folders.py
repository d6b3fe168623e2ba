"""Images without captions: folders of any depth, or ImageNet's class folders."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcap.data.errors import DataError
from fastcap.data.image_files import find_images
from fastcap.data.pixels import decode_image
from fastcap.types import CaptionRecords

MAX_SKIPPED = 0.05  # share of a split's images that may be left out


class ImageFiles(CaptionRecords):
    """Image files of one split.

    Attributes:
        paths: The files.
        labels: Class of each file, -1 for none.
        classes: Names of the classes.
        num_skipped: Images of the split that were left out when it was read.
        max_skipped: Share of the split's images that may be left out altogether.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        num_skipped: int = 0,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        self.name, self.paths, self.classes = name, paths, list(classes)
        self.labels = [-1] * len(paths) if labels is None else labels
        self.num_skipped, self.max_skipped = num_skipped, max_skipped
        self.image_ids: Sequence[int] = range(len(paths))
        self.captions: Sequence[Sequence[str]] = [[]] * len(paths)

    def load_image(self, index: int, size: int) -> np.ndarray:
        """Decode image ``index``, squashed to a square; (size, size, 3). Raises ``DataError`` naming the file."""
        return decode_image(self.paths[index], size)

    def fingerprint(self) -> str:
        """Digest of every file's path, size and time of change."""
        digest = hashlib.sha256()
        for path in self.paths:
            status = path.stat()
            digest.update(os.fsencode(f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}\n"))
        return digest.hexdigest()


class FolderImages:
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

    def split(self, name: str) -> ImageFiles:
        """Return "train" or "val".

        Raises:
            DataError: If a folder is missing, they hold fewer than two images, or too many that cannot be read.
        """
        paths, num_skipped = _images_below(self.roots, self.max_skipped)
        if len(paths) < 2:
            raise DataError(f"{self.roots[0]}: {len(paths)} images in this folder, at least 2 are needed")
        every = min(max(2, round(1 / self.val_share)), len(paths))
        chosen = [path for i, path in enumerate(paths) if (i % every == every // 2) == (name == "val")]
        return ImageFiles(name, chosen, num_skipped=num_skipped, max_skipped=self.max_skipped)


class ClassFolders:
    """ImageNet's layout: ``root/train/CLASS/*`` and ``root/val/CLASS/*``.

    Args:
        root: The folder.
        max_skipped: Share of the images that may be left out because they cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str], max_skipped: float = MAX_SKIPPED) -> None:
        self.root, self.max_skipped = Path(root).expanduser(), max_skipped

    def split(self, name: str) -> ImageFiles:
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
        return ImageFiles(name, paths, labels, classes, num_skipped, self.max_skipped)

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
