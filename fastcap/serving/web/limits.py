"""What the server takes from a client, and how it says no."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

# Formats that are tried at all: a file of any other kind reaches no decoder.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
MAX_STEPS = 32


class RefusedError(Exception):
    """A request that is turned away.

    Attributes:
        status: HTTP status.
        message: One sentence for the person who asked.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for, and how many may wait.

    Attributes:
        max_bytes: Bytes of an upload.
        max_pixels: Pixels of a picture, width times height.
        upload_seconds: Time in which an upload must have arrived.
        max_waiting: Uploads in flight or in the queue.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    upload_seconds: float = 30.0
    max_waiting: int = 32


def megabytes(count: float) -> str:
    """Write a number of bytes as megabytes."""
    return f"{count / 1e6:.3g} MB"


def check_picture(data: bytes, name: str, limits: Limits) -> None:
    """Look at a picture's header, before anything is decoded.

    Args:
        data: The file.
        name: What to call it in errors.
        limits: What is allowed.

    Raises:
        RefusedError: If it is empty, of no known format (415) or of too many pixels (413).
    """
    if not data:
        raise RefusedError(422, f"{name}: the file is empty.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"{name}: the picture has more than {_megapixels(limits)}.") from error
    except Exception as error:  # Pillow's header readers raise many kinds: OSError, SyntaxError, struct.error, ...
        known = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RefusedError(415, f"{name}: this is no picture that can be read; send {known}.") from error
    if width * height > limits.max_pixels:
        raise RefusedError(413, f"{name}: {width} x {height} pixels are more than {_megapixels(limits)}.")


def _megapixels(limits: Limits) -> str:
    return f"the limit of {limits.max_pixels / 1e6:.3g} megapixels"
