"""What the server takes from a client, and how it says no."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

# Formats that are tried at all, with their media types: a file of any other kind reaches no decoder.
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
# A browser shows the answer only after it has sent its upload: so much of a too large one is read and thrown away.
_DRAIN = 8


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


async def read_picture(request: Request, limits: Limits) -> tuple[str, bytes]:
    """Take the picture from a form's field ``image`` or from the body; what it is says its content, not its type.

    Returns:
        Its name and the file.

    Raises:
        RefusedError: If the upload is too large (413) or slow (408), no picture or form by its type (415), or its form
            cannot be read (400) or used (422).
    """
    body = await _read_body(request, limits)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return "picture", body
    if kind != "multipart/form-data":
        types = f"{', '.join(FORMATS.values())} or application/octet-stream"
        raise RefusedError(
            415, f"Send the picture as the form field image (multipart/form-data) or as the body, of type {types}."
        )

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = await Request(request.scope, replay).form(max_files=2, max_fields=2, max_part_size=10_000)
    except Exception as error:  # the parser raises many kinds: MultiPartException, LookupError of a charset, ...
        raise RefusedError(400, "The form cannot be read.") from error
    try:
        if unknown := sorted(set(form) - {"image"}):
            raise RefusedError(422, f"{_plain(unknown[0])}: no such field; the picture goes into the field image.")
        files = form.getlist("image")
        if len(files) != 1 or not isinstance(files[0], UploadFile):
            raise RefusedError(422, "image: this field must hold one file.")
        return _plain(files[0].filename or "picture"), await files[0].read()
    finally:
        await form.close()


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Collect a request's body within the limits; neither Starlette nor uvicorn has any for it."""
    limit, chunks, size = limits.max_bytes, list[bytes](), 0
    too_large = RefusedError(413, f"The upload is larger than the limit of {limit / 1e6:.3g} MB.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > _DRAIN * limit:
        raise too_large
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > _DRAIN * limit:
                    raise too_large
                if size <= limit:
                    chunks.append(chunk)
                else:
                    chunks.clear()
    except TimeoutError as error:
        raise RefusedError(408, f"The upload took longer than {limits.upload_seconds:g} seconds.") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "The upload broke off.") from error
    if size > limit:
        raise too_large
    return b"".join(chunks)


def check_picture(data: bytes, name: str, limits: Limits) -> None:
    """Look at a picture's header, before anything is decoded.

    Args:
        data: The file.
        name: What to call it in errors.
        limits: What is allowed.

    Raises:
        RefusedError: If it is empty (422), of no known format (415) or of too many pixels (413).
    """
    if not data:
        raise RefusedError(422, f"{name}: the file is empty.")
    most = f"the limit of {limits.max_pixels / 1e6:.3g} megapixels"
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"{name}: the picture has more than {most}.") from error
    except Exception as error:  # Pillow's header readers raise many kinds: OSError, SyntaxError, struct.error, ...
        message = f"{name}: this is no picture that can be read; send one of {', '.join(FORMATS.values())}."
        raise RefusedError(415, message) from error
    if width * height > limits.max_pixels:
        raise RefusedError(413, f"{name}: {width} x {height} pixels are more than {most}.")


def _plain(name: str) -> str:
    """Make a client's name fit for a sentence: one line, not too long."""
    return "".join(c if c.isprintable() else " " for c in name)[:80]
