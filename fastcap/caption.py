"""Caption images: `fastcap caption PHOTO|FOLDER|PATTERN|- ... [--model MODEL]`.

Nothing slow is imported before it is needed: an exported model, the shipped one too, loads neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcap.cli import UserError, one_clear_error, refuse_below_one
from fastcap.utils.files import naming

if TYPE_CHECKING:
    import numpy as np

    from fastcap.serving.captioner import Captioner

LOW_CONFIDENCE = 0.3  # geometric mean of a caption's words; below, it is said to be doubtful


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="fastcap caption", description="Caption image files and folders.")
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        help="image files, folders of them, patterns (photos/**/*.jpg), or - for paths from standard input, one a line",
    )
    parser.add_argument(
        "--model",
        "--ckpt",
        metavar="PATH",
        help="an .onnx file or an export's folder, a checkpoint or a run's folder, or 'last' (default: the model that "
        "comes with FastCap)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write JSON lines to FILE, each as it comes")
    parser.add_argument("--resume", action="store_true", help="go on with --out FILE: what it holds is not done again")
    parser.add_argument("--steps", action="store_true", help="show every refinement step")
    parser.add_argument("--picture", type=Path, metavar="DIR", help="draw every refinement step into DIR, a PNG a file")
    parser.add_argument("--num-steps", type=int, help="refinement steps, of a checkpoint (default: the model's)")
    parser.add_argument("--length-beam", type=int, help="length candidates, of a checkpoint (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=8, help="images a batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the network (default: what runs it decides)")
    return parser.parse_args(arguments)


def find(places: Iterable[Path]) -> tuple[list[Path], bool]:
    """Find the images of files, folders and patterns, telling what is left out; returns whether that is a fault.

    Raises:
        DataError: If a path does not exist, a pattern matches nothing, or a folder holds no image.
    """
    from fastcap.data.image_files import find_images

    found = find_images(places)
    for skipped in (found.hidden, found.unreadable):
        if skipped.counts:
            print(f"fastcap: {skipped}", file=sys.stderr)
    return found.files, bool(found.unreadable.counts)


def named_on(lines: Iterable[str]) -> Iterator[Path]:
    """Yield what lines of text name; a path that does not exist comes through, to be reported in its turn."""
    for number, line in enumerate(lines):
        if name := (line if number else line.removeprefix("\ufeff")).rstrip("\r\n"):
            path = Path(name)
            yield from find([path])[0] if path.is_dir() else [path]


def caption_files(
    files: Iterable[Path], captioner: Captioner, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Caption files in batches; an unreadable one yields its error instead of a caption.

    While the network works on a batch, the next one's files are decoded.
    """
    from fastcap.data.errors import DataError

    if arguments.picture:
        from fastcap.reporting.pictures import draw_refinement

    waiting = iter(files)
    taken: set[Path] = set()

    with ThreadPoolExecutor(2) as pool:

        def begin() -> list[tuple[Path, Future[np.ndarray]]]:
            return [(file, pool.submit(captioner.read, file)) for file in islice(waiting, arguments.batch_size)]

        batch = begin()
        while batch:
            upcoming = begin()
            rows: list[dict[str, Any]] = []
            pixels: list[np.ndarray] = []
            for file, future in batch:
                rows.append({"file": str(file)})
                try:
                    pixels.append(future.result())
                except DataError as error:
                    rows[-1]["error"] = str(error)
            captions = captioner.caption_batch(pixels, record_steps=arguments.steps or bool(arguments.picture))
            captioned = zip(captions, pixels, strict=True)
            for row in rows:
                if "error" not in row:
                    caption, image = next(captioned)
                    row["caption"] = caption.text
                    row["confidence"] = round(caption.confidence, 4)
                    if caption.confidence < LOW_CONFIDENCE:
                        row["low_confidence"] = True
                    if arguments.steps:
                        row["steps"] = [
                            {**vars(step), "confidence": [round(p, 4) for p in step.confidence]}
                            for step in caption.steps
                        ]
                    if arguments.picture:
                        path = free_path(arguments.picture, row["file"], taken)
                        draw_refinement(path, image, caption.text, caption.steps, caption.expert_weights or [])
                        row["picture"] = str(path)
                yield row
            batch = upcoming


def free_path(folder: Path, file: str, taken: set[Path]) -> Path:
    """Name the picture of a file after it; files of one name get a number."""
    stem, number = Path(file).stem, 1
    path = folder / f"{stem}.png"
    while path in taken:
        number += 1
        path = folder / f"{stem}_{number}.png"
    taken.add(path)
    return path


def as_json(row: dict[str, Any]) -> str:
    """Write a result as one line of JSON."""
    text = json.dumps(row, ensure_ascii=False)
    # A name that is no UTF-8 is written in JSON's escapes, which Python reads back as the very same name.
    return text if text.isprintable() else json.dumps(row)


def show(row: dict[str, Any], json_lines: bool) -> None:
    """Print one result; words that a step masked again stand in brackets."""
    if json_lines:
        print(as_json(row), flush=True)
    elif "error" in row:
        print(f"fastcap: error: {row['error']}", file=sys.stderr)
    else:
        doubt = ", low confidence" if row.get("low_confidence") else ""
        print(f"{row['file']}: {row['caption']} ({row['confidence']:.2f}{doubt})", flush=True)
        for number, step in enumerate(row.get("steps", []), start=1):
            words = zip(step["words"], step["remasked"], strict=True)
            print(f"  step {number}: " + " ".join(f"[{w}]" if again else w for w, again in words))
        if "picture" in row:
            print(f"  picture: {row['picture']}")


def with_progress(rows: Iterable[dict[str, Any]], total: int | None, seconds: float) -> Iterator[dict[str, Any]]:
    """Pass rows on; tell the speed and what is left on standard error, every so often and in the end."""
    started = told = time.perf_counter()
    for done, row in enumerate(rows, start=1):
        yield row
        now = time.perf_counter()
        if now - told >= seconds or (done == total and told > started):
            told, rate = now, done / (now - started)
            left = "" if total is None else f" of {total}, {(total - done) / rate:.0f} s left"
            line = f"{done} images{left}, {rate:.1f} images/s"
            print(f"\r{line:<60}" if sys.stderr.isatty() and done != total else line, file=sys.stderr, flush=True)


def open_model(arguments: argparse.Namespace) -> Captioner:
    """Load what --model names, or the model that comes with FastCap, which is said.

    Raises:
        UserError: If the model cannot be used or an option's value is refused.
    """
    from fastcap.serving.captioner import Captioner

    path = arguments.model
    if path == "last":
        from fastcap.training.checkpoints import find_checkpoint

        path = find_checkpoint(path)
    captioner = Captioner.load(
        path, num_threads=arguments.threads, num_steps=arguments.num_steps, length_beam=arguments.length_beam
    )
    if path is None:
        print("fastcap: captions by the model that comes with FastCap; --model names another", file=sys.stderr)
    return captioner


def written(file: Path) -> dict[str, bool]:
    """Names that a file of JSON lines holds results of, and whether each failed; a last line cut short is taken away.

    Raises:
        UserError: If the file holds something else.
    """
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    cut = content[len(whole) :]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        names = {row["file"]: "error" in row for row in rows}
        if not cut.startswith(b'{"file": "'[: len(cut)]):
            raise ValueError("the last line does not begin as a caption's")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--out {file}: holds something else than captions; name another file") from error
    if cut:
        os.truncate(file, len(whole))
    return names


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point; exit status 1 when some image could not be captioned."""
    options = parse_arguments(arguments)
    refuse_below_one(options, "batch_size", "threads", "num_steps", "length_beam")
    for stream in (sys.stdin, sys.stdout):  # names that are no UTF-8 come and go as they are
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    if options.resume and not options.out:
        raise UserError("--resume goes on with the file that --out names")
    done: dict[str, bool] = {}
    if options.out and options.out.exists():
        if not options.resume:
            raise UserError(f"--out {options.out}: exists; add --resume to go on with it, or name another file")
        done = written(options.out)
        print(f"fastcap: {len(done)} images were done before, {sum(done.values())} failed", file=sys.stderr)
    stdin = Path("-")
    named, failed = find(path for path in options.paths if path != stdin)
    failed = failed or any(done.values())
    piped = stdin in options.paths
    files = chain(named, named_on(sys.stdin) if piped else ())
    total = None if piped else sum(str(file) not in done for file in named)
    rows = caption_files((file for file in files if str(file) not in done), open_model(options), options)
    rows = with_progress(rows, total, 1.0 if sys.stderr.isatty() else 10.0)
    file = open(options.out, "a", encoding="utf-8") if options.out else nullcontext()  # noqa: SIM115
    with naming(options.out or "standard output"), file as out:
        for row in rows:
            if out:
                print(as_json(row), file=out, flush=True)
            if not out or "error" in row:
                show(row, options.json and not out)
            failed = failed or "error" in row
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
