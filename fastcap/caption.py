"""Caption image files and folders: `fastcap caption PHOTO [PHOTO ...]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcap.cli import UserError, one_clear_error

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap caption", description="Caption image files and folders.")
    parser.add_argument("paths", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--ckpt", help="checkpoint, or 'last' (default: the newest run's best)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--steps", action="store_true", help="show every refinement step")
    parser.add_argument("--picture", type=Path, metavar="DIR", help="draw every refinement step into DIR, a PNG a file")
    parser.add_argument("--num-steps", type=int, help="refinement steps (default: the checkpoint's)")
    parser.add_argument("--num-lengths", type=int, help="length candidates (default: the checkpoint's)")
    parser.add_argument("--batch-size", type=int, default=16, help="images a batch (default: %(default)s)")
    return parser.parse_args(arguments)


def find_images(paths: list[Path]) -> Iterator[Path]:
    """Yield files as named, and the images of folders in order of their names.

    Raises:
        UserError: If a path does not exist, or a folder holds no image.
    """
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(f"{path}: no image in this folder")
            yield from found
        elif path.exists():
            yield path
        else:
            raise UserError(f"{path}: no such file")


def caption_files(files: list[Path], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Caption files in batches; an unreadable one yields its error instead of a caption."""
    import torch

    from fastcap.backbone.fold import fold_batch_norms
    from fastcap.build import find_checkpoint, load_checkpoint
    from fastcap.data import DataError
    from fastcap.data.pixels import decode_image
    from fastcap.drawing import draw_refinement, trace_refinement

    overrides = {
        f"refinement.{key}": value
        for key, value in (("num_steps", arguments.num_steps), ("num_lengths", arguments.num_lengths))
        if value is not None
    }
    loaded = load_checkpoint(find_checkpoint(arguments.ckpt), overrides)
    fold_batch_norms(loaded.model.backbone)
    size = int(loaded.config["data"]["image_size"])
    decode = loaded.tokenizer.decode
    taken: set[Path] = set()
    for start in range(0, len(files), arguments.batch_size):
        rows: list[dict[str, Any]] = []
        pixels = []
        for file in files[start : start + arguments.batch_size]:
            row: dict[str, Any] = {"file": str(file)}
            try:
                pixels.append(torch.tensor(decode_image(file, size)).permute(2, 0, 1))
                row["position"] = len(pixels) - 1
            except DataError as error:
                row["error"] = str(error)
            rows.append(row)
        if pixels:
            with torch.inference_mode():
                result = loaded.model.generate(
                    torch.stack(pixels), record_steps=arguments.steps or bool(arguments.picture)
                )
        for row in rows:
            if "position" in row:
                at = row.pop("position")
                length, drafted = int(result.lengths[at]), int(result.drafted_lengths[at])
                row["caption"] = decode(result.tokens[at, :length].tolist())
                row["confidence"] = round(float(result.scores[at].exp()), 4)
                if arguments.steps:
                    row["steps"] = [
                        {
                            "words": [decode([token]) for token in step.tokens[at, :drafted].tolist()],
                            "confidence": [round(p, 4) for p in step.confidence[at, :drafted].tolist()],
                            "remasked": step.remasked[at, :drafted].tolist(),
                        }
                        for step in result.steps
                    ]
                if arguments.picture:
                    pixel = pixels[at].permute(1, 2, 0).numpy()
                    path = free_path(arguments.picture, row["file"], taken)
                    draw_refinement(path, trace_refinement(result, at, row["file"], pixel, decode))
                    row["picture"] = str(path)
            yield row


def free_path(folder: Path, file: str, taken: set[Path]) -> Path:
    """Name the picture of a file after it; files of one name get a number."""
    stem, number = Path(file).stem, 1
    path = folder / f"{stem}.png"
    while path in taken:
        number += 1
        path = folder / f"{stem}_{number}.png"
    taken.add(path)
    return path


def show(row: dict[str, Any], as_json: bool) -> None:
    """Print one result; words that a step masked again stand in brackets."""
    if as_json:
        print(json.dumps(row, ensure_ascii=False), flush=True)
    elif "error" in row:
        print(f"fastcap: error: {row['error']}", file=sys.stderr)
    else:
        print(f"{row['file']}: {row['caption']} ({row['confidence']:.2f})", flush=True)
        for number, step in enumerate(row.get("steps", []), start=1):
            words = zip(step["words"], step["remasked"], strict=True)
            print(f"  step {number}: " + " ".join(f"[{w}]" if again else w for w, again in words))
        if "picture" in row:
            print(f"  picture: {row['picture']}")


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit status 1 when some image could not be captioned."""
    options = parse_arguments(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size} must be at least 1")
    if options.picture and options.picture.exists() and not options.picture.is_dir():
        raise UserError(f"--picture {options.picture} is not a folder")
    failed = False
    for row in caption_files(list(find_images(options.paths)), options):
        show(row, options.json)
        failed = failed or "error" in row
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
