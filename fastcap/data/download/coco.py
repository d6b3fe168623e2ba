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

from fastcap.data.coco import parse_annotations
from fastcap.data.download.karpathy import COUNTS, SPLITS, convert
from fastcap.data.download.transfer import check_space, copy, entries, fetch
from fastcap.data.errors import DataError

COCO_URL = "http://images.cocodataset.org"  # over HTTPS its certificate does not fit the name; MD5 settles the content
KARPATHY_URL = "https://cs.stanford.edu/people/karpathy/deepimagesent"


@dataclass(frozen=True)
class Piece:
    """One archive and what comes out of it.

    Attributes:
        name: What a user calls it.
        file: Path of the archive below its host's base address.
        size: Bytes, as once published.
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


@dataclass
class CocoFetcher:
    """Brings COCO's pieces into a data folder; what is there and complete is left alone.

    Attributes:
        root: The data folder.
        say: Prints a line.
        coco_url: Base address of COCO's archives.
        karpathy_url: Base address of Karpathy's archive.
        keep_archives: Whether archives stay after they are unpacked.
    """

    root: Path
    say: Callable[[str], None] = print
    coco_url: str = COCO_URL
    karpathy_url: str = KARPATHY_URL
    keep_archives: bool = False

    def fetch(self, pieces: Iterable[Piece]) -> None:
        """Fetch, unpack and check pieces.

        Raises:
            DataError: Naming the address or file and what is wrong with it.
        """
        missing = [piece for piece in pieces if not self._complete(piece)]
        # Unpacked pictures take what their archives take, and archives go one by one.
        sizes = [piece.size for piece in missing if not self._archive(piece).is_file()]
        check_space(self.root, sum(sizes) * (2 if self.keep_archives else 1) + max(sizes, default=0))
        for piece in missing:
            archive = self._archive(piece)
            base = self.karpathy_url if piece is KARPATHY else self.coco_url
            self.say(f"{piece.name:<13} {piece.size / 1e9:.1f} GB")
            fetch(f"{base.rstrip('/')}/{piece.file}", archive, piece.md5)
            self._lay_out(piece, archive)
            if not self.keep_archives:
                archive.unlink()
                if not any(archive.parent.iterdir()):
                    archive.parent.rmdir()
            self.say(f"{piece.name:<13} complete")

    def _lay_out(self, piece: Piece, archive: Path) -> None:
        annotations = self.root / "annotations"
        for entry in entries(archive):
            if piece.images and entry.name.suffix == ".jpg":
                copy(entry, self.root / "images" / piece.name / entry.name.name)
            elif entry.name.stem in piece.captions or (piece is KARPATHY and entry.name.name == "dataset_coco.json"):
                copy(entry, annotations / f"{entry.name.stem}.unchecked.json")
        if piece.images and (found := self._count(piece)) < piece.images:
            raise DataError(f"{archive}: {found} images, must be {piece.images}")
        for name, counts in piece.captions.items():
            checked = annotations / f"{name}.unchecked.json"
            files, captions, empty = parse_annotations(checked)
            numbers = len(files), sum(map(len, captions.values())) + len(empty)
            if numbers != counts:
                raise DataError(f"{checked}: {numbers} images and captions, must be {counts}")
            os.replace(checked, annotations / f"{name}.json")
        if piece is KARPATHY:
            source = annotations / "dataset_coco.unchecked.json"
            convert(source, annotations, expected=COUNTS["coco"])
            os.replace(source, annotations / "dataset_coco.json")

    def _complete(self, piece: Piece) -> bool:
        if piece.images:
            return self._count(piece) >= piece.images
        names = list(piece.captions) or [f"captions_karpathy_{split}" for split in SPLITS]
        return all((self.root / "annotations" / f"{name}.json").is_file() for name in names)  # named when checked

    def _count(self, piece: Piece) -> int:
        folder = self.root / "images" / piece.name
        return sum(name.endswith(".jpg") for name in os.listdir(folder)) if folder.is_dir() else 0

    def _archive(self, piece: Piece) -> Path:
        return self.root / "archives" / Path(piece.file).name
