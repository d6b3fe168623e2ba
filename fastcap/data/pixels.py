"""Image files to square uint8 pixels, once for a whole split where it fits."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from fastcap.data.errors import DataError, log_once
from fastcap.types import CaptionRecords

_VERSION = 2  # raise when decode_image changes what it returns: caches are then rebuilt
# Kinds of file that are decoded in this process; Pillow hands EPS to Ghostscript, which runs what the file says.
_FORMATS = {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_LARGE = 1 << 24  # pixels; larger images are converted and shrunk in tiles of at most this many
_CHUNK = 512  # images decoded between two looks at the clock; bounds the memory in flight


def decode_image(source: str | os.PathLike[str] | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decode an image and squash it to a square: the whole picture, no crop, aspect ratio given up.

    EXIF rotation is applied, transparency is laid on white, 16-bit depth is reduced to 8, and the first frame of an
    animation is taken.

    Args:
        source: Path of an image file, or its bytes.
        size: Side of the square, in pixels.
        name: What to call the image in errors; by default its path, or "image" for bytes.

    Returns:
        RGB pixels, uint8. (size, size, 3)

    Raises:
        DataError: When the file is missing, is no image, is cut short, or has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    return np.asarray(_decode(source, size, name, lambda image: image.resize((size, size), Image.Resampling.BICUBIC)))


def square_pixels(image: Image.Image | np.ndarray, size: int, name: str = "image") -> np.ndarray:
    """Squash an image that is already in memory, as ``decode_image`` does with a file.

    Args:
        image: A Pillow image of any mode, or RGB pixels, uint8. (H, W, 3)
        size: Side of the square, in pixels.
        name: What to call the image in errors.

    Returns:
        RGB pixels, uint8. (size, size, 3)

    Raises:
        DataError: When the array is no RGB image in uint8, or the image cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"{name}: pixels must be uint8 (H, W, 3), found {image.dtype} {image.shape}")
        if image.shape[:2] == (size, size):
            return image
        image = Image.fromarray(image)
    try:
        return np.asarray(_to_rgb(_upright(image)).resize((size, size), Image.Resampling.BICUBIC))
    except MemoryError:
        raise
    except Exception as error:  # as in _decode: a lazily loaded image is decoded here
        raise DataError(f"{name}: image cannot be decoded ({type(error).__name__}: {error})") from error


def decode_thumbnail(source: str | os.PathLike[str] | bytes, side: int, name: str | None = None) -> np.ndarray:
    """Decode an image for people to look at: shrunk to fit a square, never stretched, aspect ratio kept.

    Args:
        source: As in ``decode_image``.
        side: Longest side, in pixels.
        name: As in ``decode_image``.

    Returns:
        RGB pixels, uint8. (H, W, 3)

    Raises:
        DataError: As ``decode_image``.
    """

    def shrink(image: Image.Image) -> Image.Image:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        return image

    return np.asarray(_decode(source, side, name, shrink))


def _decode(
    source: str | os.PathLike[str] | bytes, size: int, name: str | None, resize: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    name = name or ("image" if isinstance(source, bytes) else os.fspath(source))
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
            raise DataError(f"{name}: not a regular file")  # a pipe would be waited for
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise DataError(f"{name}: {image.width} x {image.height} pixels are more than the limit of {limit}")
            image.draft(None, (size, size))  # JPEG: decode at 1/2, 1/4, 1/8 where enough
            return resize(_shrunk(_upright(image), size))
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: image file is missing") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image, or of a kind that Pillow cannot read") from error
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: image cannot be decoded ({type(error).__name__}: {error})") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of _FORMATS that this build of Pillow reads, in its own order."""
    Image.init()
    return tuple(kind for kind in Image.ID if kind in _FORMATS)


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB, transparency laid on white and 16 bits reduced to 8."""
    if image.mode.startswith("I"):  # I;16, I;16B, I: grey with 16 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return image.convert("RGB")


def decode_all(records: CaptionRecords, size: int, num_threads: int | None = None) -> Iterator[np.ndarray | DataError]:
    """Yield every image of a split in order, decoded in threads, or the reason why it cannot be. (S, S, 3)."""

    def decode(index: int) -> np.ndarray | DataError:
        try:
            return np.asarray(records.load_image(index, size))
        except DataError as error:
            return error

    total, start, last = len(records.image_ids), time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(
        num_threads or min(8, os.cpu_count() or 1)
    ) as pool:  # Pillow lets go of the interpreter to decode
        for low in range(0, total, _CHUNK):
            high = min(low + _CHUNK, total)
            yield from pool.map(decode, range(low, high))
            if time.monotonic() - last > 30:
                last = time.monotonic()
                log_once(f"{records.name}: decoded {high} of {total} images")
    log_once(f"{records.name}: decoded {total} images at {size} px in {time.monotonic() - start:.1f} s")


class PixelCache:
    """Every image of a split at one size, decoded once.

    With a cache folder the pixels lie in a ``.npy`` file there and are mapped into memory, so that runs and workers
    share them; the file is named by the records' fingerprint and the size, appears at once when complete, and is
    rebuilt when cut short. Without a folder they lie in memory.

    Attributes:
        pixels: Decoded pixels, uint8; a bad image's are zero. (N, 3, S, S)
        bad: Images that could not be decoded: position and reason.
    """

    def __init__(
        self,
        records: CaptionRecords,
        size: int,
        cache_dir: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Map the cached pixels of ``records``, decoding them first where there are none.

        Args:
            records: The split to decode.
            size: Side of the square images, in pixels.
            cache_dir: Folder of the cache files, made when missing; None keeps the pixels in memory.
            num_threads: Threads that decode; None takes one a core, eight at most.

        Raises:
            DataError: When the cache file cannot be written.
        """
        self.records, self.size = records, size
        self.bad: list[tuple[int, str]] = []
        self._threads = num_threads
        self._shape = (len(records.image_ids), 3, size, size)
        if cache_dir is None:
            self.pixels = np.empty(self._shape, np.uint8)
            for index, image in enumerate(self._decoded()):
                self.pixels[index] = image
            return
        key = hashlib.sha256(json.dumps([_VERSION, records.fingerprint(), size]).encode()).hexdigest()[:24]
        self.path = Path(cache_dir) / f"{records.name}-{size}px-{key}.npy"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")):  # a second run waits for the first instead of decoding too
                self.pixels = self._read() if self._is_complete() else self._build()
        except OSError as error:
            raise DataError(f"{self.path}: pixel cache cannot be written ({error}); set another cache_dir") from error

    def _build(self) -> np.ndarray:
        self.bad = []
        with replacing(self.path) as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(self._empty()))
            for image in self._decoded():
                file.write(np.ascontiguousarray(image).data)
        with replacing(self.path.with_suffix(".json")) as file:  # last: its presence says that the pixels are whole
            file.write(json.dumps({"shape": self._shape, "bad": self.bad}).encode())
        return self._read()

    def _is_complete(self) -> bool:
        try:
            with open(self.path.with_suffix(".json")) as file:
                about = json.load(file)
            if tuple(about["shape"]) != self._shape or self._read().shape != self._shape:
                return False
            self.bad = [(int(index), str(reason)) for index, reason in about["bad"]]
            return True
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False

    def _read(self) -> np.ndarray:
        if not len(self.records.image_ids):
            return self._empty()
        return np.load(self.path, mmap_mode="r")

    def _empty(self) -> np.ndarray:
        return np.broadcast_to(np.uint8(0), self._shape) if self._shape[0] else np.empty(self._shape, np.uint8)

    def _decoded(self) -> Iterator[np.ndarray]:
        """Yield the images in order, channels first, noting the bad ones. (3, S, S)."""
        for index, image in enumerate(decode_all(self.records, self.size, self._threads)):
            if isinstance(image, DataError):
                self.bad.append((index, str(image)))
                yield np.zeros(self._shape[1:], np.uint8)
            else:
                yield image.transpose(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped pixels out of a pickle: a spawned worker maps them again."""
        return self.__dict__ | ({"pixels": None} if hasattr(self, "path") else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pixels again."""
        self.__dict__.update(state)
        if self.pixels is None:
            self.pixels = self._read()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes ``path`` in one step on success and vanishes on failure."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; where there are none (Windows, some network disks) go on without."""
    with open(path, "a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
