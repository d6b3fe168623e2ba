"""Whatever files hold, the data module ends with batches and a report of what it left out, or with a named cause."""

from __future__ import annotations

import gc
import json
import logging
import resource
import shutil
import time
import warnings
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from fastcap.data import CocoCaptions, DataError, decode_image
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.tokenizer import train_word_tokenizer
from tests.data.fuzz import KINDS, encode, png_of, write_case


def load(root: Path, rng: Random, log: pytest.LogCaptureFixture) -> str:
    """Load a case as training and evaluation do; returns how it ended."""
    max_skipped = rng.choice([0.9, 0.9, 0.0])
    log.clear()
    try:
        data = CaptionDataModule(
            CocoCaptions(root, annotations={"train": "c.json"}, max_skipped=max_skipped),
            partial(train_word_tokenizer, min_frequency=1),
            image_size=8,
            batch_size=2,
            cache=rng.random() < 0.5,
            cache_dir=rng.choice([None, root / "cache"]),
            horizontal_flip=True,
            crop_scale=0.5,
        )
        trained = [i for batch in data.train_dataloader() for i in batch.image_ids.tolist()]
        seen = [i for batch in data.dataloader("train") for i in batch.image_ids.tolist()]
        for batch in data.dataloader("train"):
            assert batch.images.shape[1:] == (3, 8, 8) and all(batch.references)
    except DataError as error:
        assert str(root) in str(error) or "tokenizer: no word" in str(error) or "train: " in str(error), error
        return "named cause"
    listed = json.loads((root / "c.json").read_text("utf-8-sig"))["images"]
    assert len(seen) == len(set(seen)) and set(trained) <= set(seen)
    if len(seen) == len(listed):
        return "loaded"
    assert "left out" in log.text, f"{len(listed)} images, {len(seen)} loaded, nothing said"
    assert max_skipped or len(seen) == len(listed)
    return "left out and said so"


def fuzz(folder: Path, count: int, log: pytest.LogCaptureFixture, seed: int = 0) -> None:
    log.set_level(logging.INFO, "fastcap.data")
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    before, started, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), (0.0, "")
    for number in range(count):
        kind, rng = KINDS[number % len(KINDS)], Random(f"{seed} {number}")
        root = folder / f"case{number}"
        write_case(root, kind, rng)
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes[kind][load(root, rng, log)] += 1
            except Exception as error:
                raise AssertionError(f"case {number} ({kind}) of seed {seed}: {error!r}") from error
        slowest = max(slowest, (time.process_time() - began, f"case {number} ({kind})"))
        shutil.rmtree(root)
        if number % 500 == 0:
            gc.collect()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{count} cases, {time.process_time() - started:.0f} s of CPU, slowest {slowest[0]:.2f} s: {slowest[1]}")
    print(f"peak memory {before / 1024 + grown:.0f} MB, {grown:.0f} MB of it from here")
    columns = ["loaded", "left out and said so", "named cause"]
    print(f"{'':<26}" + "".join(f"{c:>22}" for c in columns))
    for kind in KINDS:
        print(f"{kind:<26}" + "".join(f"{outcomes[kind][c]:>22}" for c in columns))
    assert sum(sum(o.values()) for o in outcomes.values()) == count
    for kind in ("wrong suffix", "CMYK", "EXIF", "animated", "palette", "16 bit and more"):  # odd, but images
        assert outcomes[kind]["loaded"] == sum(outcomes[kind].values()), kind
    for kind in ("empty", "another kind of file", "a pipe for an image", "a folder for an image", "bomb"):
        assert outcomes[kind]["left out and said so"] and outcomes[kind]["named cause"], kind
    assert outcomes["a pipe for the JSON"]["named cause"] == sum(outcomes["a pipe for the JSON"].values())
    assert slowest[0] < 5, slowest
    assert grown < 500


def test_three_hundred_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fuzz(tmp_path, 312, caplog)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_turned_upright(orientation: int, kind: str) -> None:
    upright = Image.new("RGB", (64, 64), "white")
    upright.paste("black", (0, 0, 32, 32))
    upright.paste("red", (32, 0, 64, 32))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    captioned = decode_image(encode(stored, kind, exif=exif, quality=95), 16)
    corners = [captioned[y, x].astype(int) for y, x in ((3, 3), (3, 12), (12, 3), (12, 12))]
    wanted = [(0, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255)]
    assert np.abs(np.array(corners) - wanted).max() < 40


@pytest.mark.parametrize(
    ("side", "depth", "colour"), [((9400, 9400), 1, 0), ((9000, 9000), 16, 0), ((60, 10**6), 8, 0)]
)
def test_memory_of_the_largest_images_is_bounded(side: tuple[int, int], depth: int, colour: int) -> None:
    content = png_of(*side, depth, colour)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(content, 32).max() == 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 450


def test_large_images_shrink_faithfully() -> None:
    y, x = np.mgrid[0:4500, 0:5200]
    smooth = np.stack([x / 5200, y / 4500, (x + y) / 9700], -1)
    pixels = (smooth * 255).astype(np.uint8)
    large, small = decode_image(encode(Image.fromarray(pixels), "BMP"), 32), Image.fromarray(pixels).resize((32, 32))
    assert np.abs(large.astype(int) - np.asarray(small)).max() <= 3
