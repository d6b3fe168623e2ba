"""Export a checkpoint to ONNX files: `fastcap export [CHECKPOINT] --out FOLDER|FILE.onnx`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcap.cli import UserError, one_clear_error, refuse_below_one

PRECISIONS = ("fp32", "int8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap export",
        description="Export a checkpoint to ONNX: one file a precision, from pixels to token ids, compared with it.",
    )
    parser.add_argument(
        "ckpt",
        nargs="?",
        metavar="[ckpt=]PATH",
        help="checkpoint, a run's folder, 'last' or 'pretrained' (default: the newest run's best)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder, or an .onnx file for one precision (default: export/ beside the checkpoint's)"
    )
    parser.add_argument(
        "--precisions", type=_precisions, metavar="LIST", help="of fp32,int8 (default: both; fp32 for a file)"
    )
    parser.add_argument("--num-steps", type=int, help="refinement steps of the graph (default: the checkpoint's)")
    parser.add_argument("--length-beam", type=int, help="length candidates of the graph (default: the checkpoint's)")
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


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PRECISIONS)}")
    return names


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    chosen = parse_arguments(arguments)
    refuse_below_one(chosen, "calibration", "compare", "threads", "num_steps", "length_beam")

    from fastcap.pretrained import SHIPPED
    from fastcap.reporting.tables import markdown_table
    from fastcap.serving.compare import table
    from fastcap.serving.export import export
    from fastcap.training.checkpoints import find_checkpoint

    ckpt = Path(find_checkpoint(chosen.ckpt and chosen.ckpt.removeprefix("ckpt=")))
    if ckpt.parent == SHIPPED and not chosen.out:
        raise UserError("export pretrained: name a folder or a file with --out")
    out = chosen.out or ckpt.parent.parent / "export"
    file = out.suffix == ".onnx" and not out.is_dir()
    chosen.precisions = chosen.precisions or (("fp32",) if file else PRECISIONS)
    report = export(ckpt, out, chosen, lambda line: print(line, file=sys.stderr, flush=True))

    print(f"{ckpt}, exported\n\n{markdown_table(table(report['rows']))}")
    print(f"Export      {out}" + ("" if file else f" ({report['default']} is taken by itself)"))
    print(f"Next        fastcap caption --model {out} photo.jpg")


if __name__ == "__main__":
    main()
