"""Data sets: `fastcap data coco` fetches MS COCO, `fastcap data karpathy FILE` converts Karpathy's split files."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import UserError, one_clear_error
from fastcap.data.download import coco
from fastcap.data.download.karpathy import COUNTS, convert
from fastcap.data.download.transfer import ATTEMPTS, Transfer, progress_bar


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap data", description="Fetch data sets, or convert split files.")
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
    fetch.add_argument("--attempts", type=int, default=ATTEMPTS, help="attempts in a row that bring nothing, at most")
    fetch.add_argument("--backoff", type=float, default=1.0, help="seconds before the first repetition; then doubled")

    karpathy = commands.add_parser("karpathy", help="turn dataset_{coco,flickr8k,flickr30k}.json into COCO's format")
    karpathy.add_argument("source", type=Path, metavar="FILE", help="Karpathy's JSON")
    karpathy.add_argument("--out", type=Path, help="folder to write into (default: annotations/ beside FILE)")
    karpathy.add_argument("--no-restval", action="store_true", help="leave COCO's `restval` images out of train")
    return parser.parse_args(arguments)


def fetch_coco(options: argparse.Namespace) -> None:
    """Fetch COCO."""
    if options.attempts < 1 or options.backoff < 0:
        raise UserError("--attempts must be at least 1 and --backoff at least 0")
    years = ["2014", "2017"] if options.year == "all" else [options.year]
    pieces = [piece for year in years for piece in coco.PIECES[year] if not (options.no_images and piece.images)]
    if "2014" in years:
        pieces.insert(0, coco.KARPATHY)
    transfer = Transfer(backoff=options.backoff, attempts=options.attempts)
    with progress_bar() as progress:
        coco.CocoFetcher(
            options.root,
            transfer,
            progress,
            lambda line: progress.console.print(line, highlight=False),
            options.url,
            options.karpathy_url,
            options.keep_archives,
        ).fetch(pieces)
    print(f"COCO          {options.root}\nNext          make train ARGS='data=coco data.source.root={options.root}'")


def convert_karpathy(options: argparse.Namespace) -> None:
    """Convert a split file."""
    out = options.out or options.source.parent / "annotations"
    found = convert(options.source, out, restval=not options.no_restval)
    for split, count in found.items():
        print(f"{split:<6} {count:>7} images  {out / f'captions_karpathy_{split}.json'}")
    name = options.source.stem.removeprefix("dataset_")
    if not options.no_restval and name in COUNTS and found != COUNTS[name]:
        raise UserError(f"{options.source}: {found} images, Karpathy's {name} has {COUNTS[name]}")


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    {"coco": fetch_coco, "karpathy": convert_karpathy}[options.command](options)


if __name__ == "__main__":
    main()
