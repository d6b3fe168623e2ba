"""Whatever files hold, the data module ends with batches and a report of what it left out, or with a named cause."""

import functools
import io
import json
import logging
import os
import struct
import time
import warnings
import zlib
from collections import Counter, defaultdict
from functools import partial
from random import Random

import numpy as np
import pytest
from PIL import Image

from fastcap.data import CocoCaptions, DataError, decode_image
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.tokenizer import train_word_tokenizer

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "TGA", "ICO")
LEFT_OUT, NAMED = "left out and said so", "named cause"


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def picture(kind="PNG"):
    return encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)), kind)


def png_of(width, height, depth=1, colour=0, rows=None):
    """A black PNG of any size, few bytes long; ``rows`` fewer than ``height`` cut it short."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    line, squeeze = 1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8, zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(line)) for _ in range(height if rows is None else rows)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flipped(rng, content):
    broken = bytearray(content)
    for _ in range(rng.randint(1, 12)):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def animated(rng):
    frames = [Image.new("RGB", (12, 12), (i * 20, 0, 0)) for i in range(rng.randint(2, 9))]
    return encode(frames[0], rng.choice(["GIF", "WEBP", "PNG"]), save_all=True, append_images=frames[1:])


def deep(rng):
    values = np.random.default_rng(rng.randrange(9)).integers(0, 65536, (7, 9))
    kind = rng.choice([np.uint16, np.int32, np.float32, "PNG48"])
    if kind == "PNG48":
        return png_of(9, 7, 16, 2)
    values = values.astype(kind)
    if kind is np.float32:
        values[rng.randrange(7)] = rng.choice([float("nan"), float("inf"), -1e30, 0.5])
    return encode(Image.fromarray(values), "TIFF")


def palette(rng):
    kind = rng.choice(["PNG", "GIF", "TIFF"])
    image = Image.new("P", (9, 9), rng.randrange(256))
    image.putpalette(rng.randbytes(3 * rng.choice([1, 2, 200, 256])))
    return encode(image, kind, **({"transparency": rng.choice([0, 255, b"\0\x80"])} if kind == "PNG" else {}))


def bomb(rng):
    if rng.random() < 0.5:
        return png_of(*rng.choice([(65_000, 65_000), (2**31 - 1, 1), (1, 2**31 - 1)]), rows=rng.randrange(3))
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(content)


IMAGES = {
    "truncated": lambda rng: (c := picture(rng.choice(FORMATS)))[: rng.randrange(1, len(c))],
    "bytes changed": lambda rng: flipped(rng, picture(rng.choice(FORMATS))),
    "magic, then random": lambda rng: picture(rng.choice(FORMATS))[: rng.randint(4, 40)] + rng.randbytes(200),
    "empty": lambda rng: b"",
    "wrong suffix": lambda rng: picture(rng.choice(FORMATS)),
    "16 bit and more": deep,
    "animated": animated,
    "palette": palette,
    "bomb": bomb,
    "another kind of file": lambda rng: rng.choice([b"<html>404</html>", b"%!PS-Adobe-3.0\n{} loop\n", b"%PDF-1.7\n"]),
}


def anything(rng):
    names = ["../x.png", "/etc/passwd", "a/" * 2000 + "b", "x" * 5000, "\0", "", ".", "\ud83d", "a\\b", "1.png/x"]
    numbers = [None, True, -1, 1.5, 1e308, float("nan"), float("inf"), 2**63, 10**300]
    return rng.choice([*names, *numbers, [], {}, [[]], [None] * 9, {"id": {}}, " \u2028\x0b ", "[MASK] [PAD]"])


def retyped(rng, content):
    """One to three places hold something else, or nothing."""
    for _ in range(rng.randint(1, 3)):
        node = content
        while keys := list(node) if isinstance(node, dict) else list(range(len(node))):
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.85:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = anything(rng)
            break
    return packed(content)


def packed(content):
    return json.dumps(content).encode()


ANNOTATIONS = {
    "JSON of other types": retyped,
    "JSON truncated": lambda rng, c: packed(c)[: rng.randrange(len(packed(c)))],
    "JSON bytes changed": lambda rng, c: flipped(rng, packed(c)),
    "JSON nested deep": lambda rng, c: rng.choice([b"[", b'{"images":', b'{"a":[']) * rng.choice([500, 5000, 100_000]),
    "JSON in another encoding": lambda rng, c: packed(c).decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
    "JSON with long numbers": lambda rng, c: packed(c).replace(b"101", b"9" * rng.choice([19, 400, 10_000])),
}
PLACES = ("a pipe for an image", "a folder for an image", "a link in a circle", "a pipe for the JSON")
KINDS = [*IMAGES, *ANNOTATIONS, *PLACES]


def write_case(root, kind, rng):
    """Write a set of three images at ``root``, the second image or the annotations being ``kind``."""
    (root / "images").mkdir(parents=True)
    names = ["0.png", f"1{rng.choice(['.png', '.jpg', '.tif', ''])}" if kind in IMAGES else "1.png", "2.png"]
    for name in names:
        (root / "images" / name).write_bytes(picture())
    content = {
        "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": 100 + i % 3, "caption": f"a dog {i}"} for i in range(6)],
    }
    odd, json_file = root / "images" / names[1], root / "c.json"
    json_file.write_bytes(ANNOTATIONS[kind](rng, content) if kind in ANNOTATIONS else packed(content))
    if kind in IMAGES:
        odd.write_bytes(IMAGES[kind](rng))
    elif kind in PLACES:
        target = json_file if kind.endswith("JSON") else odd
        target.unlink()
        if "pipe" in kind:
            os.mkfifo(target)
        elif "folder" in kind:
            target.mkdir()
        else:
            target.symlink_to(target.name)


def load(root, rng, log):
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
            crop_scale=0.5,
        )
        trained = [i for batch in data.train_dataloader() for i in batch.image_ids.tolist()]
        batches = list(data.dataloader("train"))
    except DataError as error:
        assert str(root) in str(error) or "tokenizer: no word" in str(error) or "train: " in str(error), error
        return NAMED
    assert all(batch.images.shape[1:] == (3, 8, 8) and all(batch.references) for batch in batches)
    seen = [i for batch in batches for i in batch.image_ids.tolist()]
    listed = json.loads((root / "c.json").read_text("utf-8-sig"))["images"]
    assert len(seen) == len(set(seen)) and set(trained) <= set(seen)
    if len(seen) == len(listed):
        return "loaded"
    assert "left out" in log.text and max_skipped, f"{len(listed)} images, {len(seen)} loaded, nothing said"
    return LEFT_OUT


def test_two_hundred_cases(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcap.data")
    outcomes = defaultdict(Counter)
    for number in range(10 * len(KINDS)):
        kind, rng, began = KINDS[number % len(KINDS)], Random(f"0 {number}"), time.process_time()
        write_case(tmp_path / str(number), kind, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes[kind][load(tmp_path / str(number), rng, caplog)] += 1
            except Exception as error:
                raise AssertionError(f"case {number} ({kind}): {error!r}") from error
        assert time.process_time() - began < 5, (number, kind)
    for kind in ("wrong suffix", "animated", "palette", "16 bit and more"):  # odd, but images
        assert outcomes[kind].keys() == {"loaded"}, kind
    for kind in ("empty", "another kind of file", "a pipe for an image", "a folder for an image", "bomb"):
        assert outcomes[kind][LEFT_OUT] and outcomes[kind][NAMED], kind
    assert outcomes["a pipe for the JSON"].keys() == {NAMED}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright(orientation):
    upright = Image.new("RGB", (64, 64), "white")
    upright.paste("black", (0, 0, 32, 32))
    upright.paste("red", (32, 0, 64, 32))
    # What undoes an orientation: itself, but for the two quarter turns.
    undo = [
        None,
        "FLIP_LEFT_RIGHT",
        "ROTATE_180",
        "FLIP_TOP_BOTTOM",
        "TRANSPOSE",
        "ROTATE_90",
        "TRANSVERSE",
        "ROTATE_270",
    ]
    name = undo[orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP"):
        stored = upright.transpose(Image.Transpose[name]) if name else upright
        captioned = decode_image(encode(stored, kind, exif=exif, quality=95), 16)
        corners = [captioned[y, x].astype(int) for y, x in ((3, 3), (3, 12), (12, 3), (12, 12))]
        wanted = [(0, 0, 0), (255, 0, 0), (255, 255, 255), (255, 255, 255)]
        assert np.abs(np.array(corners) - wanted).max() < 40, kind
