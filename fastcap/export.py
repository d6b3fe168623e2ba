"""Export a checkpoint to ONNX and OpenVINO: `fastcap export [ckpt=]PATH --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fastcap.cli import UserError, one_clear_error

FORMATS = ("onnx", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap export", description="Export a checkpoint to ONNX and OpenVINO.")
    parser.add_argument(
        "ckpt",
        nargs="?",
        type=_checkpoint,
        metavar="[ckpt=]PATH",
        help="checkpoint, or 'last' (default: the newest run's best)",
    )
    parser.add_argument("--out", type=Path, help="folder to make (default: export/ beside the checkpoint's folder)")
    parser.add_argument(
        "--formats", type=_some_of(FORMATS), default=FORMATS, metavar="LIST", help="of onnx,openvino (default: both)"
    )
    parser.add_argument(
        "--precisions",
        type=_some_of(PRECISIONS),
        default=PRECISIONS,
        metavar="LIST",
        help="of fp32,bf16,int8 (default: all; bf16 is OpenVINO's)",
    )
    parser.add_argument(
        "--calibration", type=int, default=128, metavar="N", help="training images for int8 (default: %(default)s)"
    )
    parser.add_argument(
        "--compare", type=int, default=300, metavar="N", help="validation images for the report (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="images for both, where the checkpoint's own data is out of reach"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the checkpoint's data lies now")
    parser.add_argument("--threads", type=int, help="threads while comparing (default: what runs it decides)")
    return parser.parse_args(arguments)


def _checkpoint(text: str) -> Path:
    return Path(text.removeprefix("ckpt="))


def _some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    chosen = parse_arguments(arguments)
    for name in ("calibration", "compare", "threads"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")

    from fastcap.serving.export import ExportOptions, export
    from fastcap.serving.readme import COLUMNS, table
    from fastcap.training.checkpoints import find_checkpoint

    ckpt = Path(find_checkpoint(chosen.ckpt))
    out = chosen.out or ckpt.parent.parent / "export"
    options = ExportOptions(
        chosen.formats,
        chosen.precisions,
        chosen.calibration,
        chosen.compare,
        chosen.images,
        chosen.threads,
        chosen.data_root,
    )
    report = export(ckpt, out, options, lambda line: print(line, file=sys.stderr, flush=True))

    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{ckpt}, exported")
    for name in COLUMNS:
        shown.add_column(name, no_wrap=name == "variant")
    for row in table(report["rows"]):
        shown.add_row(*row)
    Console().print(shown)
    print(f"Export      {out} (taken by itself: {report['default']})")
    print(f"Next        fastcap caption --model {out} photo.jpg")


if __name__ == "__main__":
    main()
