"""Caption sets with one thing wrong, drawn by a seed: what people's files hold, and what a fuzzer would try."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM", "TGA", "ICO")
NUM_IMAGES = 3


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def picture(kind: str = "PNG", side: int = 20, mode: str = "RGB", **options: Any) -> bytes:
    noise = np.random.default_rng(side).integers(0, 256, (side, side + 4, 3), np.uint8)
    return encode(Image.fromarray(noise).convert(mode), kind, **options)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@functools.cache
def png_of(width: int, height: int, depth: int = 1, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size, few bytes long; ``rows`` fewer than ``height`` cut it short."""
    line = 1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8
    squeeze = zlib.compressobj(9)
    body = b"".join(squeeze.compress(bytes(line)) for _ in range(height if rows is None else rows)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def flipped(rng: Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(rng.randint(1, 12)):
        broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def rotated(rng: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 70_000, "up", (3, 3)])
    kind = rng.choice(["JPEG", "PNG", "WEBP"])
    try:
        return encode(Image.new("RGB", (20, 10), "red"), kind, exif=exif)
    except (struct.error, TypeError, ValueError):
        return encode(Image.new("RGB", (20, 10), "red"), kind, exif=b"Exif\0\0" + rng.randbytes(60))


def animated(rng: Random) -> bytes:
    frames = [Image.new("RGB", (12, 12), (i * 20, 0, 0)) for i in range(rng.randint(2, 9))]
    return encode(frames[0], rng.choice(["GIF", "WEBP", "PNG"]), save_all=True, append_images=frames[1:])


def deep(rng: Random) -> bytes:
    kind = rng.choice(["I;16", "I;16B", "I", "F", "PNG48"])
    if kind == "PNG48":
        return png_of(9, 7, 16, 2)
    values = np.random.default_rng(rng.randrange(9)).integers(0, 65536, (7, 9))
    if kind == "F":
        noise = values.astype(np.float32)
        noise[rng.randrange(7)] = rng.choice([float("nan"), float("inf"), -1e30, 0.5])
        return encode(Image.fromarray(noise), "TIFF")
    if kind == "I":
        return encode(Image.fromarray((values * 70_000).astype(np.int32)), "TIFF")
    return encode(Image.fromarray(values.astype("<u2" if kind == "I;16" else ">u2")), "TIFF")


def palette(rng: Random) -> bytes:
    kind = rng.choice(["PNG", "GIF", "TIFF"])
    image = Image.new("P", (9, 9), rng.randrange(256))
    image.putpalette(rng.randbytes(3 * rng.choice([1, 2, 200, 256])))
    extra = {"transparency": rng.choice([0, 255, b"\0\x80"])} if kind == "PNG" else {}
    return encode(image, kind, **extra)


def bomb(rng: Random) -> bytes:
    width, height = rng.choice([(65_000, 65_000), (2**31 - 1, 1), (100_000, 100_000), (1, 2**31 - 1), (13_000, 13_000)])
    kind = rng.choice(["PNG", "GIF", "BMP", "TIFF", "text", "JPEG"])
    if kind == "text":
        info = PngImagePlugin.PngInfo()
        info.add_text("a", "b" * 3_000_000, zip=True)
        return encode(Image.new("L", (4, 4)), "PNG", pnginfo=info)
    content = bytearray(picture(kind))
    if kind == "GIF":
        content[6:10] = struct.pack("<HH", 65_535, 65_535)
        place = content.index(b",")
        content[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif kind == "JPEG":
        place = content.index(b"\xff\xc0")
        content[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    elif kind == "TIFF":
        content = bytearray(content.replace(struct.pack("<HHI", 256, 4, 1), b""))
        for tag in (256, 257):
            place = content.find(struct.pack("<H", tag))
            content[place + 8 : place + 12] = struct.pack("<I", width)
    else:
        return png_of(width, height, rows=rng.randrange(3))
    return bytes(content)


def other(rng: Random) -> bytes:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
    return rng.choice(
        [b"<html>404</html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", eps, b"%PDF-1.7\n", b"PK\3\4"]
    )


def thin(rng: Random) -> bytes:
    return png_of(*rng.choice([(1, 1), (1, 5000), (5000, 1), (40_000, 3), (3, 40_000)]), 8)


IMAGES: dict[str, Callable[[Random], bytes]] = {
    "truncated": lambda rng: (c := picture(rng.choice(FORMATS)))[: rng.randrange(1, len(c))],
    "bytes changed": lambda rng: flipped(rng, picture(rng.choice(FORMATS))),
    "random bytes": lambda rng: rng.randbytes(rng.randint(1, 400)),
    "magic, then random": lambda rng: picture(rng.choice(FORMATS))[: rng.randint(4, 40)] + rng.randbytes(200),
    "empty": lambda rng: b"",
    "wrong suffix": lambda rng: picture(rng.choice(FORMATS)),
    "CMYK": lambda rng: picture(rng.choice(["JPEG", "TIFF"]), 20, "CMYK"),
    "16 bit and more": deep,
    "EXIF": rotated,
    "animated": animated,
    "palette": palette,
    "bomb": bomb,
    "thin": thin,
    "another kind of file": other,
}


def nested(rng: Random) -> Any:
    value: Any = rng.choice([1, "x", None])
    for _ in range(rng.choice([3, 300, 900])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def anything(rng: Random) -> Any:
    names = ["../x.png", "/etc/passwd", "a/" * 2000 + "b", "x" * 5000, "\0", "", ".", "\ud83d", "..", "a\\b", "1.png/x"]
    numbers: list[Any] = [None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 2**63, -(2**63), 10**300]
    makers: list[Callable[[], Any]] = [
        lambda: rng.choice(names),
        lambda: rng.choice(numbers),
        lambda: rng.choice([[], {}, [[]], [None] * 9, {"id": {}}, "a" * 20_000, " \u2028\x0b ", "[MASK] [PAD]"]),
        lambda: nested(rng),
    ]
    return rng.choice(makers)()


def retyped(rng: Random, content: dict[str, Any]) -> bytes:
    """One to three places hold something else, or nothing."""
    for _ in range(rng.randint(1, 3)):
        node: Any = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.85:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = anything(rng)
            break
    return json.dumps(content).encode()


def doubled(rng: Random, content: dict[str, Any]) -> bytes:
    content[rng.choice(["images", "annotations"])] *= rng.randint(2, 400)
    return json.dumps(content).encode()


def packed(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


ANNOTATIONS: dict[str, Callable[[Random, dict[str, Any]], bytes]] = {
    "JSON of other types": retyped,
    "JSON truncated": lambda rng, c: packed(c)[: rng.randrange(len(packed(c)))],
    "JSON bytes changed": lambda rng, c: flipped(rng, packed(c)),
    "JSON random bytes": lambda rng, c: rng.randbytes(rng.randint(0, 300)),
    "JSON nested deep": lambda rng, c: rng.choice([b"[", b'{"images":', b'{"a":[']) * rng.choice([500, 5000, 100_000]),
    "JSON records doubled": doubled,
    "JSON in another encoding": lambda rng, c: packed(c).decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
    "JSON with long numbers": lambda rng, c: packed(c).replace(b"101", b"9" * rng.choice([19, 400, 10_000])),
}

PLACES = ("a pipe for an image", "a folder for an image", "a link in a circle", "a pipe for the JSON")
KINDS = [*IMAGES, *ANNOTATIONS, *PLACES]


def write_case(root: Path, kind: str, rng: Random) -> None:
    """Write a set of three images at ``root``, the second image or the annotations being ``kind``."""
    (root / "images").mkdir(parents=True)
    suffix = rng.choice([".png", ".jpg", ".gif", ".webp", ".tif", ""]) if kind in IMAGES else ".png"
    names = ["0.png", f"1{suffix}", "2.png"]
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
