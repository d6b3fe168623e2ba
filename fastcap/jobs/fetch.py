"""Data sets: `fastcap data coco` fetches MS COCO; `fastcap data flickr8k` and `flickr30k` lay out what people have."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastcap.cli import one_clear_error
from fastcap.data.download import coco, flickr


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap data", description="Fetch data sets, or lay out archives.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("coco", help="fetch MS COCO and Karpathy's split, as data=coco expects them")
    fetch.add_argument("--year", choices=list(coco.PIECES), default="2014", help="Karpathy's split is of 2014")
    fetch.add_argument("--no-images", action="store_true", help="captions and splits alone")
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
    for name, command in commands.choices.items():
        command.add_argument("--root", type=Path, default=Path("data", name), help="data folder (default: %(default)s)")
    return parser.parse_args(arguments)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parse_arguments(arguments)
    root, config = options.root, options.command
    if options.command == "coco":
        pieces = [coco.KARPATHY] if options.year == "2014" else []
        pieces += [piece for piece in coco.PIECES[options.year] if not (options.no_images and piece.images)]
        coco.fetch_coco(pieces, root)
        print(f"COCO   {root}")
    else:
        config = "flickr8k"
        for split, count in flickr.lay_out(options.command, options.archive, root).items():
            print(f"{split:<6} {count:>7} images  {root / 'annotations' / f'captions_{split}.json'}")
    print(f"Next   make train ARGS='data={config} data.source.root={root}'")


if __name__ == "__main__":
    main()
