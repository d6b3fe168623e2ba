"""Write shards for `data=coco_streaming`: `fastcap shards`, with Hydra overrides of that data set."""

from __future__ import annotations

import argparse
from typing import Any

from hydra import compose, initialize_config_dir

from fastcap.build import CONFIG_DIR, construct
from fastcap.cli import UserError, one_clear_error
from fastcap.data.streaming import StreamingCaptions


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap shards", description="Write the shards of a streaming data set.")
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="splits to write (default: all)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. data.source.root=DIR data.image_size=224")
    return parser.parse_intermixed_args(arguments)


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line a split; shards that are there already stay."""
    options = parse_arguments(arguments)
    chosen = [] if any(o.startswith("data=") for o in options.overrides) else ["data=coco_streaming"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=[*chosen, *options.overrides])
    source: Any = construct(cfg.data.source)
    if not isinstance(source, StreamingCaptions):
        raise UserError(f"data.source {cfg.data.source.get('_target_')} keeps no shards; leave data=coco_streaming")
    for split in options.splits or list(source.source.annotations):
        about = source.write(split)
        megabytes = sum(size for _, size, _ in about["shards"]) / 1e6
        left_out = f", {len(about['bad'])} cannot be decoded" if about["bad"] else ""
        print(
            f"{split:<8}{len(about['image_ids']):>8} images{left_out}, {len(about['shards'])} shards, "
            f"{megabytes:.0f} MB  {source.folder(split)}"
        )


if __name__ == "__main__":
    main()
