"""Data sets: `fastcap data coco` fetches MS COCO; `flickr8k`, `flickr30k` and `karpathy` lay out what people have."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import one_clear_error
from fastcap.data.download import coco, flickr
from fastcap.data.download.karpathy import COUNTS, convert


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap data", description="Fetch data sets, or lay out archives.")
    commands = parser.add_subparsers(dest="command", required=True)

    fetch = commands.add_parser("coco", help="fetch MS COCO and Karpathy's split, as data=coco expects them")
    fetch.add_argument("--root", type=Path, default=Path("data/coco"), help="data folder (default: %(default)s)")
    fetch.add_argument(
        "--year", choices=["2014", "2017", "all"], default="2014", help="2014 is what Karpathy's split is of"
    )
    fetch.add_argument("--no-images", action="store_true", help="captions and splits alone")
    fetch.add_argument("--keep-archives", action="store_true", help="keep the zip files in ROOT/archives")
    fetch.add_argument("--url", default=coco.COCO_URL, help="base address of COCO's archives (default: %(default)s)")
    fetch.add_argument(
        "--karpathy-url", default=coco.KARPATHY_URL, help="base address of caption_datasets.zip (default: %(default)s)"
    )

    for name in ("flickr8k", "flickr30k"):
        layout = commands.add_parser(name, help=f"lay out {name} from the archives that you have")
        layout.add_argument(
            "--archive",
            type=Path,
            nargs="+",
            action="extend",
            required=True,
            metavar="FILE",
            help="photographs, captions and split lists, as zip or tar files, folders or single files",
        )
        layout.add_argument("--root", type=Path, default=Path("data", name), help="data folder (default: %(default)s)")

    karpathy = commands.add_parser("karpathy", help="turn dataset_{coco,flickr8k,flickr30k}.json into COCO's format")
    karpathy.add_argument("source", type=Path, metavar="FILE", help="Karpathy's JSON")
    karpathy.add_argument("--out", type=Path, help="folder to write into (default: annotations/ beside FILE)")
    karpathy.add_argument("--no-restval", action="store_true", help="leave COCO's `restval` images out of train")
    return parser.parse_args(arguments)


def fetch_coco(options: argparse.Namespace) -> None:
    """Fetch COCO."""
    years = ["2014", "2017"] if options.year == "all" else [options.year]
    pieces = [piece for year in years for piece in coco.PIECES[year] if not (options.no_images and piece.images)]
    if "2014" in years:
        pieces.insert(0, coco.KARPATHY)
    coco.CocoFetcher(options.root, print, options.url, options.karpathy_url, options.keep_archives).fetch(pieces)
    print(f"COCO          {options.root}\nNext          make train ARGS='data=coco data.source.root={options.root}'")


def lay_out_flickr(options: argparse.Namespace) -> None:
    """Take Flickr8k or Flickr30k out of archives."""
    for split, count in flickr.lay_out(options.command, options.archive, options.root).items():
        print(f"{split:<6} {count:>7} images  {options.root / 'annotations' / f'captions_{split}.json'}")
    print(f"Next   make train ARGS='data=flickr8k data.source.root={options.root}'")


def convert_karpathy(options: argparse.Namespace) -> None:
    """Convert a split file."""
    out = options.out or options.source.parent / "annotations"
    expected = None if options.no_restval else COUNTS.get(options.source.stem.removeprefix("dataset_"))
    for split, count in convert(options.source, out, not options.no_restval, expected).items():
        print(f"{split:<6} {count:>7} images  {out / f'captions_karpathy_{split}.json'}")


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    jobs = {"coco": fetch_coco, "karpathy": convert_karpathy}
    jobs.get(options.command, lay_out_flickr)(options)


if __name__ == "__main__":
    main()
