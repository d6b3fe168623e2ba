"""Caption sets in COCO's format (one JSON a split, a folder of images), and captions in its result format."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from fastcap.data.errors import MAX_SKIPPED, DataError, Skipped
from fastcap.data.image_files import FileRecords, resolve_name, same_name
from fastcap.types import CaptionSource
from fastcap.utils.files import write_text

_ANNOTATIONS = {name: f"annotations/captions_{name}.json" for name in ("train", "val", "test")}


class CocoCaptions(CaptionSource):
    """A caption set in COCO's format: COCO itself, Flickr8k, Flickr30k, or one's own."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        images: str | Mapping[str, str] = "images",
        annotations: Mapping[str, str] | None = None,
        max_images: int | None = None,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        """Describe where the set lies; nothing is read before ``split``.

        Args:
            root: Data folder.
            images: Image folder below ``root``, or one for each split (COCO 2017: train2017, val2017).
            annotations: JSON file of each split, below ``root``; by default annotations/captions_{train,val,test}.json.
            max_images: Use only the first so many images of each split.
            max_skipped: Share of a split's images that may be left out (no file, no caption, not decodable): they are
                counted and reported, and above this share the split is refused.
        """
        self.root = Path(root).expanduser()
        self.images = images if isinstance(images, str) else dict(images)
        self.annotations = dict(_ANNOTATIONS if annotations is None else annotations)
        self.max_images, self.max_skipped = max_images, max_skipped
        if not 0 <= max_skipped <= 1:
            raise DataError(f"max_skipped must be in [0, 1], found {max_skipped}")
        if max_images is not None and max_images < 1:
            raise DataError(f"max_images must be positive, found {max_images}")

    def split(self, name: str) -> FileRecords:
        """Read and check one split; images that cannot be used are left out.

        Raises:
            DataError: When the folder, the JSON or a field of it is missing or malformed, or too much is left out.
        """
        if self.annotations.get(name) is None:
            raise DataError(f"{self.root}: no split {name!r}; choose from {', '.join(sorted(self.annotations))}")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: data folder (root) is missing")
        source = self.root / self.annotations[name]
        folder = self.root / (self.images if isinstance(self.images, str) else self.images.get(name, "images"))
        if not folder.is_dir():
            raise DataError(f"{folder}: image folder (images) is missing")
        files, captions, empty = parse_annotations(source)
        if not files:
            raise DataError(f"{source}: images is empty")
        spoilt = Skipped(f"{source} ({name})")
        for where in empty:
            spoilt.add("empty captions", f"{where}.caption")
        spoilt.report()
        skipped, disk = Skipped(f"{source} ({name})"), _Files([folder, self.root])
        paths: dict[int, Path] = {}
        for image_id, file_name in files.items():
            path = disk.find(file_name)
            if path is None:
                skipped.add("images whose file is absent", folder / file_name)
            elif not captions[image_id]:
                skipped.add("images without a caption", f"image id {image_id}, {file_name}")
            else:
                paths[image_id] = path
        skipped.check(len(files), self.max_skipped)
        usable = list(paths)[: self.max_images]
        texts, places = [captions[image_id] for image_id in usable], [paths[image_id] for image_id in usable]
        num_skipped = skipped.total if self.max_images is None else 0
        return FileRecords(name, places, num_skipped, self.max_skipped, usable, texts)


def normalise_caption(text: str) -> str:
    r"""Turn every run of white space (also \r, \x0b, \x0c, \u2028) into one blank; lone surrogates into U+FFFD."""
    return " ".join(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").split())


def read_json(source: Path, what: str) -> Any:
    """Read a JSON file; raises ``DataError`` naming it, and what it is, when it is absent or no JSON."""
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise DataError(f"{source}: {what} is not a regular file")  # a pipe would be waited for
        with open(source, encoding="utf-8-sig") as file:
            return json.load(file)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{source}: {what} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{source}: {what} is not readable JSON ({error})") from error


def parse_annotations(source: Path, need_files: bool = True) -> tuple[dict[int, str], dict[int, list[str]], list[str]]:
    """Read one annotation file.

    Args:
        source: The file.
        need_files: Whether each image must name its file; otherwise one that does not gets "".

    Returns:
        File name of each image id, captions of each image id, and the places of empty captions.

    Raises:
        DataError: Naming the file and the field, at the first thing that is not COCO's format.
    """
    content = read_json(source, "annotation file")
    if not isinstance(content, dict):
        raise DataError(f"{source}: must hold a JSON object, found {type(content).__name__}")
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            found = type(content[key]).__name__ if key in content else "nothing"
            raise DataError(f"{source}: field {key!r} must be a list, found {found}")

    files: dict[int, str] = {}
    for index, entry in enumerate(content["images"]):
        where = f"{source}: images[{index}]"
        image_id = read_field(entry, "id", int, where)
        if image_id in files:
            raise DataError(f"{where}.id {image_id} is a duplicate")
        if not need_files and "file_name" not in entry:
            files[image_id] = ""
            continue
        file_name = read_field(entry, "file_name", str, where)
        path, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
        if not path.name or path.is_absolute() or windows.root or ".." in windows.parts:
            raise DataError(f"{where}.file_name must be a path below the image folder, found {file_name!r}")
        files[image_id] = str(path)

    captions: dict[int, list[str]] = {image_id: [] for image_id in files}
    empty: list[str] = []
    for index, entry in enumerate(content["annotations"]):
        where = f"annotations[{index}]"
        image_id = read_field(entry, "image_id", int, f"{source}: {where}")
        text = normalise_caption(read_field(entry, "caption", str, f"{source}: {where}"))
        if image_id not in files:
            raise DataError(f"{source}: {where}.image_id {image_id} is not among the ids of images")
        if text:
            captions[image_id].append(text)
        else:
            empty.append(where)
    return files, captions, empty


def read_field(entry: Any, key: str, kind: type, where: str) -> Any:
    """Take a field out of an entry: an integer of 64 bits or a string.

    Raises:
        DataError: Saying ``where``, which field, and what was found instead.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object, found {type(entry).__name__}")
    value = entry.get(key)
    fits = not isinstance(value, int) or (not isinstance(value, bool) and -(2**63) <= value < 2**63)
    if not isinstance(value, kind) or not fits:
        found = type(value).__name__ if key in entry else "nothing"
        if isinstance(value, str | int | float):
            found += f" {value!r:.60}"
        raise DataError(f"{where}.{key} must be {'an integer' if kind is int else 'a string'}, found {found}")
    return value


class _Files:
    """Finds files as annotations name them below folders, from one listing of each folder that they mention.

    A name may have Windows' separators, the other Unicode form or other letter case; the exact one is taken first.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self._listings: dict[Path, tuple[Path, set[str], dict[str, str]]] = {}

    def find(self, name: str) -> Path | None:
        """Return where a file lies; None where it does not."""
        for path in map(PurePosixPath, dict.fromkeys((name, name.replace("\\", "/")))):
            for root in self.roots:
                folder = root / path.parent
                if folder not in self._listings:
                    self._listings[folder] = self._list(folder)
                place, exact, folded = self._listings[folder]
                found = path.name if path.name in exact else folded.get(same_name(path.name).casefold())
                if found is not None:
                    return place / found
        return None

    @staticmethod
    def _list(folder: Path) -> tuple[Path, set[str], dict[str, str]]:
        place = resolve_name(folder) or folder
        if not os.path.isdir(place):  # False, unlike Path.is_dir, where the name is longer than a path may be
            return place, set(), {}
        try:
            names = os.listdir(place)
        except OSError as error:
            raise DataError(f"{place}: image folder cannot be listed ({error})") from error
        return place, set(names), {same_name(name).casefold(): name for name in names}


class ScoredPair(NamedTuple):
    """One generated caption with all that it is scored against."""

    image_id: int
    caption: str  # as it stands in the result file
    references: list[str]  # at least one
    file_name: str  # the image's file as the references name it, or ""


def write_results(path: Path, captions: Iterable[tuple[int, str]]) -> None:
    """Write (image id, caption) pairs as COCO's evaluation server takes them: a list of two-field objects."""
    rows = [{"image_id": int(image_id), "caption": caption} for image_id, caption in captions]
    write_text(path, json.dumps(rows))


def read_results(path: Path) -> dict[int, str]:
    """Read a result file; further fields of an entry are ignored, as COCO's server does.

    Returns:
        Caption of each image id, in the file's order.

    Raises:
        DataError: Naming the file and the entry, at the first thing that is not COCO's result format.
    """
    content = read_json(path, "result file")
    if not isinstance(content, list):
        raise DataError(
            f"{path}: must hold a JSON list of {{image_id, caption}} objects, found {type(content).__name__}"
        )
    if not content:
        raise DataError(f"{path}: the list of captions is empty")
    captions: dict[int, str] = {}
    places: dict[int, int] = {}
    for index, entry in enumerate(content):
        where = f"{path}: [{index}]"
        image_id = read_field(entry, "image_id", int, where)
        caption = read_field(entry, "caption", str, where)
        if image_id in captions:
            raise DataError(f"{where}.image_id {image_id} is a duplicate of [{places[image_id]}]")
        captions[image_id], places[image_id] = caption, index
    return captions


def pair_results(results: Path, references: Path, allow_missing: bool = False) -> list[ScoredPair]:
    """Join a result file with COCO caption annotations, whose ``file_name`` may be absent.

    Images that the annotations list without any caption cannot be scored: they are left out, counted and reported.

    Args:
        results: Captions in COCO's result format.
        references: The annotations.
        allow_missing: Score what was captioned where other images were not, and report their number.

    Returns:
        One entry an image, in the annotations' order.

    Raises:
        DataError: Naming the file and what is wrong: malformed, an id that the annotations lack, images without a
            caption (unless allowed), or nothing left to score.
    """
    captions = read_results(results)
    files, texts, _ = parse_annotations(references, need_files=False)
    unknown = [image_id for image_id in captions if image_id not in files]
    if unknown:
        place = list(captions).index(unknown[0])
        raise DataError(
            f"{results}: [{place}].image_id {unknown[0]} is not among the ids of images in {references}"
            f" ({len(unknown)} of {len(captions)} are not)"
        )
    missing = [image_id for image_id in files if texts[image_id] and image_id not in captions]
    if missing and not allow_missing:
        raise DataError(
            f"{results}: no caption for {len(missing)} of the {sum(map(bool, texts.values()))} images with references"
            f" in {references} (first: image id {missing[0]}); --allow-missing scores the others"
        )
    pairs: list[ScoredPair] = []
    skipped = Skipped(str(references))
    for image_id, file_name in files.items():
        if not texts[image_id] and image_id in captions:
            skipped.add("images without a reference", f"image id {image_id}")
        elif image_id in captions:
            pairs.append(ScoredPair(image_id, captions[image_id], texts[image_id], file_name))
        elif texts[image_id]:
            skipped.add("images without a caption to score", f"image id {image_id}")
    skipped.report()
    if not pairs:
        raise DataError(f"{results}: none of its captions has a reference in {references}")
    return pairs
