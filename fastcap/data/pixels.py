"""Decode image files to square uint8 pixels, with Pillow and numpy alone."""

from __future__ import annotations

import functools
import io
import os
import stat

import numpy as np
from PIL import Image, ImageOps

from fastcap.data.errors import DataError

# Kinds of file that are decoded in this process; Pillow hands EPS to Ghostscript, which runs what the file says.
_FORMATS = {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_LARGE = 1 << 24  # pixels; larger images are converted and shrunk in tiles of at most this many
_BAND = 1 << 20  # samples of more than 8 bits that are scaled at once
_DEPTHS = (8, 10, 12, 14, 16)  # bits that integer samples are stored with, whatever type they are stored in


def decode_image(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray,
    size: int,
    name: str | None = None,
    square: bool = True,
) -> np.ndarray:
    """Decode an image and squash it to a square: the whole picture, no crop, aspect ratio given up.

    EXIF rotation is applied, transparency is laid on white, more than 8 bits are reduced to 8 by the range of the
    samples, and the first frame of an animation is taken.

    Args:
        source: Path of an image file, or its bytes; a Pillow image of any mode; or RGB pixels, uint8 (H, W, 3), which
            pass through where they have the size.
        size: Side of the square, in pixels.
        name: What to call the image in errors; by default its path, or "image".
        square: False keeps the aspect ratio, for people to look at: the image is shrunk to fit the square.

    Returns:
        RGB pixels, uint8. (size, size, 3)

    Raises:
        DataError: When the file is missing, is no image, is cut short, or has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``; or when an array is no RGB image in uint8.
    """
    name = name or (os.fspath(source) if isinstance(source, str | os.PathLike) else "image")
    try:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
                raise DataError(f"{name}: pixels must be uint8 (H, W, 3), found {source.dtype} {source.shape}")
            if source.shape[:2] == (size, size):
                return source
            source = Image.fromarray(source)
        if isinstance(source, Image.Image):
            return _resized(source, size, square)
        if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
            raise DataError(f"{name}: not a regular file")  # a pipe would be waited for
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise DataError(f"{name}: {image.width} x {image.height} pixels are more than the limit of {limit}")
            image.draft(None, (size, size))  # JPEG: decode at 1/2, 1/4, 1/8 where enough
            return _resized(image, size, square)
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: image file is missing") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image, or of a kind that Pillow cannot read") from error
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: image cannot be decoded ({type(error).__name__}: {error})") from error


def _resized(image: Image.Image, size: int, square: bool) -> np.ndarray:
    image = _shrunk(_to_8_bits(_upright(image)), size)
    if square:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))  # as trained on: study 024
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this build of Pillow reads, in its own order."""
    Image.init()
    return tuple(kind for kind in Image.ID if kind in _FORMATS)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that ``decode_image`` reads."""
    kinds = {*_formats(), "MPO"}  # a camera's JPEG with further pictures
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; an unreadable EXIF block counts as none."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _shrunk(image: Image.Image, size: int) -> Image.Image:
    """Convert to RGB; a large image tile by tile, each shrunk at once, so that no whole copy of it is made."""
    x, y = (max(1, side // (2 * size)) for side in image.size)
    if image.width * image.height <= _LARGE or x == y == 1:
        return _to_rgb(image)
    width = max(x, min(image.width, 4096) // x * x)
    height = max(y, min(image.height, _LARGE // width) // y * y)
    canvas = Image.new("RGB", (-(-image.width // x), -(-image.height // y)))
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            box = (left, top, min(left + width, image.width), min(top + height, image.height))
            canvas.paste(_to_rgb(image.crop(box)).reduce((x, y)), (left // x, top // y))
    return canvas


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Reduce grey samples of more than 8 bits (modes I, I;16, F) to 8.

    What counts as white is a matter of custom: 1 or 255 or 65,535 in floating point, the highest number of 8 to 16 bits
    in integers. The least of them that no sample exceeds is taken. Other samples (negative ones, or of 32 bits) are
    spread over the range that they take up.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    rows = max(1, _BAND // image.width)  # a few rows at a time: no whole copy in floating point is made
    bands = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    low, high = np.inf, -np.inf
    for box in bands:
        samples = np.asarray(image.crop(box), np.float32)
        known = np.isfinite(samples)
        low = min(low, float(samples.min(where=known, initial=np.inf)))
        high = max(high, float(samples.max(where=known, initial=-np.inf)))
    if low > high:
        raise ValueError("no sample is a number")
    whites = (1, 255, 65535) if image.mode == "F" else [2**bits - 1 for bits in _DEPTHS]
    # Filters overshoot: a hundredth beyond white is white, beyond black is black.
    white = next((white for white in whites if high <= 1.01 * white), None) if low >= -0.01 * high else None
    start, width = (0.0, white) if white else (low, max(high - low, 1e-12))
    canvas = Image.new("L", image.size)
    for box in bands:
        scaled = np.nan_to_num((np.asarray(image.crop(box), np.float32) - start) * (255 / width))
        canvas.paste(Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8)), box)
    return canvas


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode of 8 bits to RGB, transparency laid on white."""
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")
