"""What stands before the application: foreign pages, large or slow uploads and crowds are turned away here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastcap.serving.web.limits import Limits, RefusedError, megabytes

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
# A browser shows the answer only after it has sent its upload: so much of a too large one is read and thrown away.
_DRAIN = 8


@dataclass
class Crowd:
    """How many uploads are in flight or in the queue."""

    waiting: int = 0


class Guard:
    """ASGI middleware that hands on only requests whose body has arrived whole, in time and within the limits.

    Args:
        app: The application.
        limits: What is allowed.
        hosts: Names under which the server may be called, which keeps DNS rebinding out; None allows any.
        crowd: Where the uploads are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Sequence[str] | None, crowd: Crowd) -> None:
        self.app, self.limits, self.hosts, self.crowd = app, limits, hosts, crowd

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, read its body, hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            self._check_origin(scope)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, send_guarded)
                return
            if self.crowd.waiting >= self.limits.max_waiting:
                raise RefusedError(503, f"{self.crowd.waiting} pictures are waiting already; try again in a moment.")
            self.crowd.waiting += 1
            try:
                await self.app(scope, _replay(await self._read(scope, receive), receive), send_guarded)
            finally:
                self.crowd.waiting -= 1
        except RefusedError as refused:
            answer = JSONResponse({"error": refused.message}, refused.status)
            answer.headers["connection"] = "close"  # the rest of the upload may not have been read
            if refused.status == 503:
                answer.headers["retry-after"] = "1"
            await answer(scope, receive, send_guarded)
        except _GoneError:
            pass

    def _check_origin(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise RefusedError(403, "This server answers only under its own address.")
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise RefusedError(403, "This server takes pictures only from its own page.")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Collect a request's body.

        Raises:
            RefusedError: If it is too large (413) or too slow (408).
            _GoneError: If the client went away.
        """
        limit, seconds = self.limits.max_bytes, self.limits.upload_seconds
        declared = Headers(scope=scope).get("content-length", "")
        too_large = RefusedError(413, f"The upload is larger than the limit of {megabytes(limit)}.")
        if declared.isdecimal() and int(declared) > _DRAIN * limit:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size <= limit:
                        chunks.append(message.get("body", b""))
                    else:
                        chunks.clear()
                        if size > _DRAIN * limit:
                            raise too_large
        except TimeoutError as error:
            raise RefusedError(408, f"The upload took longer than {seconds:g} seconds.") from error
        if size > limit:
            raise too_large
        return b"".join(chunks)


class _GoneError(Exception):
    """The client closed its connection before its upload was whole."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, once and without keeping it, then whatever the server says next."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    del body

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
