"""Image files as people have them: behind links, with odd suffixes, beside hidden files, oddly named; sets of them.

This is the only place that looks for images in folders.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from fastcap.data.errors import MAX_SKIPPED, DataError, Skipped
from fastcap.data.pixels import decode_image, image_suffixes
from fastcap.types import CaptionRecords, CaptionSource

# Images of kinds that are not decoded here: a folder's are counted and named.
_OTHER_KINDS = frozenset(
    ".heic .heif .hif .jxl .jxr .wdp .psd .psb .xcf .svg .svgz .eps .ai .exr .hdr .dds .qoi .sgi .xpm .xbm .wmf .emf "
    ".arw .cr2 .cr3 .crw .dcr .dng .erf .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srw .x3f".split()
)
# Other programs' folders: thumbnails on a Synology disk, a Mac's side files in a zip archive, Windows' waste bin.
_SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
_ANY_DEPTH = 1 << 30


@dataclass
class FoundImages:
    """Images that were found, and what was left out."""

    files: list[Path] = field(default_factory=list)  # those of one folder or pattern in order of their paths
    hidden: Skipped = field(default_factory=lambda: Skipped("images"))  # files and folders: no fault
    # Images of kinds that are not decoded, links that lead nowhere, folders that cannot be listed.
    unreadable: Skipped = field(default_factory=lambda: Skipped("images"))


def find_images(places: Iterable[str | os.PathLike[str]]) -> FoundImages:
    """Find the images that files, folders and patterns name.

    A file counts as named, whatever its suffix. Folders are searched to any depth and through links, each folder once,
    so that circles end; what they bring are files whose suffix the decoder reads, in upper or lower case. Names that
    begin with a dot are hidden (a Mac's ``._`` files, ``.thumbnails``), and so are folders of other programs. A pattern
    (``photos/**/*.jpg``) chooses from what a search of its folder brings; one with a plain suffix chooses any file of
    that suffix. Names are found in either Unicode form (NFC, NFD).

    Raises:
        DataError: If a place does not exist, or a folder or pattern brings no image; says what was left out.
    """
    found = FoundImages()
    for place in map(Path, places):
        known = resolve_name(place)
        if known is None and not glob.has_magic(str(place)):
            raise DataError(f"{place}: no such file")
        if known is not None and not known.is_dir():
            found.files.append(known)
            continue
        part = FoundImages(hidden=found.hidden, unreadable=Skipped(str(place)))
        if known is None:
            part.files = sorted(_match(place, part))
        else:
            part.files = sorted(path for path in _walk(known, part) if _is_image(path, part))
        if not part.files:
            what = "no image in this folder" if known is not None else "no file matches this pattern"
            told = [str(skipped) for skipped in (part.unreadable, part.hidden) if skipped.counts]
            raise DataError("; ".join([f"{place}: {what}", *told]))
        found.files += part.files
        found.unreadable.merge(part.unreadable)
    return found


def resolve_name(path: Path) -> Path | None:
    """Find a path, also where the disk has its names in the other Unicode form; None where there is none."""
    if os.path.lexists(path):
        return path
    known = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        step: Path | None = known / part
        if not os.path.lexists(known / part):
            try:
                names = os.listdir(known)
            except OSError:
                return None
            step = next((known / name for name in names if same_name(name) == same_name(part)), None)
        if step is None:
            return None
        known = step
    return known


def same_name(name: str) -> str:
    """Return one form of all names that people call the same: "é" as one character, or as "e" with an accent."""
    return unicodedata.normalize("NFC", name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: hidden, or another program's folder."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def walk_files(root: Path) -> Iterator[Path]:
    """Yield every file below a folder that is not hidden, images or not, through links, each folder once."""
    return _walk(root, FoundImages())


def _is_image(path: Path, found: FoundImages) -> bool:
    """Whether the decoder reads files of this suffix; counts images that it does not."""
    suffix = path.suffix.lower()
    if suffix in _OTHER_KINDS:
        found.unreadable.add(f"images of kind {suffix}, which is not decoded", path)
    return suffix in image_suffixes()


def _walk(root: Path, found: FoundImages, depth: int = _ANY_DEPTH, hidden: bool = False) -> Iterator[Path]:
    """Yield every file below a folder. Each folder is read once, under its own name rather than through a link."""
    folders, links = deque([(root, 1)]), deque[tuple[Path, int]]()
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, root.resolve().parents)}  # a link up is a circle
    while folders or links:
        folder, level = (folders or links).popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.unreadable.add("folders that cannot be listed", f"{folder}: {error.strerror}")
            continue
        for entry in entries:
            path, image = folder / entry.name, Path(entry.name).suffix.lower() in image_suffixes()
            is_folder = os.path.isdir(entry)  # False, unlike entry.is_dir, of a link to itself
            if not hidden and is_hidden(entry.name):
                if is_folder or image:
                    found.hidden.add("hidden folders" if is_folder else "hidden images", path)
            elif is_folder:
                if level < depth:
                    (links if entry.is_symlink() else folders).append((path, level + 1))
            elif os.path.isfile(entry):
                yield path
            elif image:
                found.unreadable.add("links that lead nowhere, or no files", path)


def _match(pattern: Path, found: FoundImages) -> Iterator[Path]:
    """Yield the images that a pattern chooses."""
    parts = [same_name(part) for part in pattern.parts]
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base, wild = resolve_name(Path(*parts[:plain])), parts[plain:]
    if base is None or not base.is_dir():
        return
    depth = _ANY_DEPTH if "**" in wild else len(wild)
    suffix = Path(wild[-1]).suffix
    for path in _walk(base, found, depth, hidden=any(part.startswith(".") for part in wild)):
        names = [same_name(name) for name in path.relative_to(base).parts]
        if _fits(names, wild) and ((suffix and not glob.has_magic(suffix)) or _is_image(path, found)):
            yield path


def _fits(names: Sequence[str], wild: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, as in a shell: no wildcard stands for a leading dot."""
    if not wild or not names:
        return not wild and not names
    if wild[0] == "**":
        visible = next((place for place, name in enumerate(names) if name.startswith(".")), len(names))
        return any(_fits(names[place:], wild[1:] or ["*"]) for place in range(min(visible, len(names) - 1) + 1))
    hides = names[0].startswith(".") and not wild[0].startswith(".")
    return not hides and fnmatchcase(names[0], wild[0]) and _fits(names[1:], wild[1:])


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
        stats: dict[Path, tuple[int, int]] = {}
        for path in self.paths:
            with contextlib.suppress(OSError):  # a link to nothing, or in a circle
                found = os.stat(path)
                stats[path] = (found.st_size, found.st_mtime_ns)
        lines = [f"{os.path.abspath(path)} {stats.get(path)}" for path in self.paths]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


class FolderImages(CaptionSource):
    """Every image below folders, at any depth; every twentieth, at least one, is kept for validation.

    Args:
        roots: The folder, or several.
        max_skipped: Share of the images that may be left out because they cannot be read.
    """

    def __init__(self, roots: str | os.PathLike[str] | Sequence[str], max_skipped: float = MAX_SKIPPED) -> None:
        places = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
        self.roots = [Path(place).expanduser() for place in places]
        self.max_skipped = max_skipped

    def split(self, name: str) -> FileRecords:
        """Return "train" or "val".

        Raises:
            DataError: If a folder is missing, they hold fewer than two images, or too many that cannot be read.
        """
        paths, num_skipped = _images_below(self.roots, self.max_skipped)
        if len(paths) < 2:
            raise DataError(f"{self.roots[0]}: {len(paths)} images in this folder, at least 2 are needed")
        every = min(20, len(paths))
        chosen = [path for i, path in enumerate(paths) if (i % every == every // 2) == (name == "val")]
        return FileRecords(name, chosen, num_skipped, self.max_skipped)


class ClassFolders(CaptionSource):
    """ImageNet's layout: ``root/train/CLASS/*`` and ``root/val/CLASS/*``; some unreadable images may be left out."""

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
