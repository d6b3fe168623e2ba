"""MS COCO's pieces: where they are, what they must be, and where they go.

Below the data folder, as ``conf/data/coco.yaml`` expects it:

    images/{train2014,val2014,train2017,val2017}/*.jpg
    annotations/captions_{train,val}{2014,2017}.json            COCO's own
    annotations/captions_karpathy_{train,val,test}.json         Karpathy's split of 2014, converted
    archives/                                                   what is on its way; emptied piece by piece
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from fastcap.data.coco import parse_annotations
from fastcap.data.download.archives import unpack_images, unpack_json
from fastcap.data.download.karpathy import COUNTS, SPLITS, convert
from fastcap.data.download.transfer import Transfer, check_space
from fastcap.data.errors import DataError

COCO_URL = "http://images.cocodataset.org"  # over HTTPS its certificate does not fit the name; MD5 settles the content
KARPATHY_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent"


@dataclass(frozen=True)
class Piece:
    """One archive and what comes out of it.

    Attributes:
        name: What a user calls it.
        file: Path of the archive below its host's base address.
        size: Bytes, as once published: for planning where the server does not say.
        md5: Published digest; None where there is none.
        images: Pictures that it must hold.
        captions: Images and captions that each annotation file must hold, by name.
    """

    name: str
    file: str
    size: int
    md5: str | None = None
    images: int = 0
    captions: dict[str, tuple[int, int]] = field(default_factory=dict)


PIECES = {
    "2014": [
        Piece(
            "captions2014",
            "annotations/annotations_trainval2014.zip",
            252_872_794,
            "0a379cfc70b0e71301e0f377548639bd",
            captions={"captions_train2014": (82_783, 414_113), "captions_val2014": (40_504, 202_654)},
        ),
        Piece("val2014", "zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 40_504),
        Piece("train2014", "zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 82_783),
    ],
    "2017": [
        Piece(
            "captions2017",
            "annotations/annotations_trainval2017.zip",
            252_907_541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            captions={"captions_train2017": (118_287, 591_753), "captions_val2017": (5_000, 25_014)},
        ),
        Piece("val2017", "zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 5_000),
        Piece("train2017", "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 118_287),
    ],
}
KARPATHY = Piece("karpathy", "caption_datasets.zip", 36_745_453)
KARPATHY_COUNTS = COUNTS["coco"]


class CocoFetcher:
    """Brings COCO's pieces into a data folder; what is there and complete is left alone.

    Args:
        root: The data folder.
        transfer: Downloads.
        progress: Shows how far it is.
        say: Prints a line.
        coco_url: Base address of COCO's archives.
        karpathy_url: Base address of Karpathy's archive.
        keep_archives: Whether archives stay after they are unpacked.
    """

    def __init__(
        self,
        root: Path,
        transfer: Transfer,
        progress: Progress,
        say: Callable[[str], None] = print,
        coco_url: str = COCO_URL,
        karpathy_url: str = KARPATHY_URL,
        keep_archives: bool = False,
    ) -> None:
        self.root, self.transfer, self.progress, self.say = root, transfer, progress, say
        self.coco_url, self.karpathy_url, self.keep_archives = coco_url, karpathy_url, keep_archives

    def fetch(self, pieces: Iterable[Piece]) -> None:
        """Fetch, unpack and check pieces.

        Raises:
            DataError: Naming the address or file and what is wrong with it.
        """
        missing = []
        for piece in pieces:
            if self._complete(piece):
                self.say(f"{piece.name:<13} there already, complete")
            else:
                missing.append(piece)
        self._check_space(missing)
        for piece in missing:
            archive = self._archive(piece)
            self.transfer.fetch(self._url(piece), archive, self.progress, piece.md5)
            self._lay_out(piece, archive)
            if not self.keep_archives:
                archive.unlink()
                if not any(archive.parent.iterdir()):
                    archive.parent.rmdir()
            self.say(f"{piece.name:<13} complete")

    def _lay_out(self, piece: Piece, archive: Path) -> None:
        annotations = self.root / "annotations"
        if piece.images:
            unpack_images(archive, self._folder(piece), self.progress)
            found = _count_images(self._folder(piece))
            if found < piece.images:
                raise DataError(f"{self._folder(piece)}: {found} images, must be {piece.images}")
        for name, counts in piece.captions.items():
            path = annotations / f"{name}.json"
            checked = path.with_name(f"{name}.unchecked.json")
            unpack_json(archive, f"annotations/{name}.json", checked)
            files, captions, empty = parse_annotations(checked)
            found_counts = len(files), sum(map(len, captions.values())) + len(empty)
            if found_counts != counts:
                raise DataError(f"{checked}: {found_counts} images and captions, must be {counts}")
            os.replace(checked, path)
        if piece.name == KARPATHY.name:
            source = annotations / "dataset_coco.json"
            unpack_json(archive, "dataset_coco.json", source)
            self.karpathy(source)

    def karpathy(self, source: Path) -> None:
        """Convert Karpathy's COCO file and check its counts.

        Raises:
            DataError: If it is not his format or holds other numbers of images.
        """
        found = convert(source, self.root / "annotations")
        if found != KARPATHY_COUNTS:
            for name in SPLITS:
                _karpathy_file(self.root, name).unlink()
            raise DataError(f"{source}: {found} images, must be {KARPATHY_COUNTS}")

    def _complete(self, piece: Piece) -> bool:
        if piece.images:
            return _count_images(self._folder(piece)) >= piece.images
        if piece.captions:  # they get their names when they were checked
            return all((self.root / "annotations" / f"{name}.json").is_file() for name in piece.captions)
        return all(_karpathy_file(self.root, name).is_file() for name in SPLITS)

    def _check_space(self, missing: list[Piece]) -> None:
        """Unpacked pictures take what their archives take, and archives go one by one."""
        needed, largest = 0, 0
        for piece in missing:
            archive = self._archive(piece)
            part = archive.with_name(archive.name + ".part")
            here = next((path.stat().st_size for path in (archive, part) if path.is_file()), 0)
            size = here if archive.is_file() else self.transfer.size(self._url(piece)) or piece.size
            needed += size - here if self.keep_archives else -here
            needed += size if piece.images else size // 2  # captions: a few files of what an archive holds
            largest = max(largest, size)
        if missing:
            check_space(self.root, needed + (0 if self.keep_archives else largest))

    def _url(self, piece: Piece) -> str:
        base = self.karpathy_url if piece.name == KARPATHY.name else self.coco_url
        return f"{base.rstrip('/')}/{piece.file}"

    def _archive(self, piece: Piece) -> Path:
        return self.root / "archives" / Path(piece.file).name

    def _folder(self, piece: Piece) -> Path:
        return self.root / "images" / piece.name


def _karpathy_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"captions_karpathy_{split}.json"


def _count_images(folder: Path) -> int:
    return sum(entry.name.endswith(".jpg") for entry in os.scandir(folder)) if folder.is_dir() else 0
