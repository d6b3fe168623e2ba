"""Find image files as people have them: behind links, with odd suffixes, beside hidden files, oddly named.

This is the only place that looks for images in folders; of libraries it needs Pillow alone.
"""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from fastcap.data.errors import DataError, Skipped
from fastcap.data.pixels import image_suffixes

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
    """Images that were found, and what was left out.

    Attributes:
        files: The images; those of one folder or pattern in order of their paths.
        hidden: Hidden files and folders: passing over them is no fault.
        unreadable: Images of kinds that are not decoded, links that lead nowhere, folders that cannot be listed.
    """

    files: list[Path] = field(default_factory=list)
    hidden: Skipped = field(default_factory=lambda: Skipped("images"))
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
            path, kind, image = folder / entry.name, _kind(entry), Path(entry.name).suffix.lower() in image_suffixes()
            if not hidden and is_hidden(entry.name):
                if kind == "folder" or image:
                    found.hidden.add("hidden folders" if kind == "folder" else "hidden images", path)
            elif kind == "folder":
                if level < depth:
                    (links if entry.is_symlink() else folders).append((path, level + 1))
            elif kind == "file":
                yield path
            elif image:
                found.unreadable.add("links that lead nowhere, or no files", path)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # a link to itself
        return ""


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
