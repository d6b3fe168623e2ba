"""The application: the page, the caption API, its OpenAPI description and the health check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import fastcap
from fastcap.data.errors import DataError
from fastcap.serving.web.answers import CaptionAnswer, ErrorAnswer, HealthAnswer, ModelAnswer
from fastcap.serving.web.guard import Crowd, Guard
from fastcap.serving.web.limits import MAX_STEPS, MEDIA_TYPES, Limits, RefusedError, check_picture

if TYPE_CHECKING:
    from fastcap.serving.captioner import Captioner

_STATIC = Path(__file__).parent / "static"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "description": "The picture, as a form's field `image` or as the body itself.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "format": "binary"}},
                "required": ["image"],
                "additionalProperties": False,
            }
        },
        **{media_type: _BINARY for media_type in (*MEDIA_TYPES, "application/octet-stream")},
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The form cannot be read."},
    403: {"model": ErrorAnswer, "description": "Asked by another site's page, or under another name."},
    408: {"model": ErrorAnswer, "description": "The upload took too long."},
    413: {"model": ErrorAnswer, "description": "Too many bytes or pixels."},
    415: {"model": ErrorAnswer, "description": "No picture of a known format."},
    422: {"model": ErrorAnswer, "description": "A field is missing or wrong, or the picture is damaged."},
    503: {"model": ErrorAnswer, "description": "Too many pictures are waiting."},
}


def create_app(captioner: Captioner, limits: Limits | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """Build the application around a captioner.

    Captions are written one at a time by one thread: torch shares each among the cores, and a second one beside it
    would only slow both.

    Args:
        captioner: What writes the captions.
        limits: What a request may ask for.
        hosts: Names under which the server may be called; None allows any.
    """
    limits = limits or Limits()
    worker = ThreadPoolExecutor(1, thread_name_prefix="captioner")
    written, crowd = 0, Crowd()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    app = FastAPI(
        title="FastCap",
        version=fastcap.__version__,
        description="Captions for pictures, written whole and at once, then refined.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts and fonts from elsewhere
        redoc_url=None,
    )

    def write(data: bytes, name: str, num_steps: int | None, record_steps: bool, asked: float) -> CaptionAnswer:
        queue = time.perf_counter() - asked
        if num_steps is not None and captioner.num_steps is None:
            raise RefusedError(422, "num_steps: this model writes word after word and refines nothing.")
        check_picture(data, name, limits)
        try:
            caption = captioner.caption(data, num_steps=num_steps, record_steps=record_steps)
        except DataError as error:
            raise RefusedError(422, f"{name}: the picture is damaged and cannot be decoded.") from error
        return CaptionAnswer(
            caption=caption.text,
            confidence=caption.confidence,
            num_steps=captioner.num_steps if num_steps is None else num_steps,
            steps=caption.steps if record_steps else None,
            expert_weights=caption.expert_weights,
            milliseconds={**caption.milliseconds, "queue": queue * 1000},
        )

    @app.post("/api/caption", responses=_REFUSALS, openapi_extra={"requestBody": _BODY}, summary="Caption a picture")
    async def caption_picture(
        request: Request,
        num_steps: Annotated[
            int | None, Query(ge=1, le=MAX_STEPS, description="Refinement steps; the model's own number by default.")
        ] = None,
        record_steps: Annotated[bool, Query(description="Answer with every step.")] = False,
    ) -> CaptionAnswer:
        nonlocal written
        name, data = await _read_picture(request)
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(worker, write, data, name, num_steps, record_steps, time.perf_counter())
        written += 1
        return answer

    @app.get("/api/model", summary="The model and the limits")
    async def model() -> ModelAnswer:
        return ModelAnswer(
            model=captioner.info,
            num_steps=captioner.num_steps,
            max_steps=MAX_STEPS,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            media_types=list(MEDIA_TYPES),
        )

    @app.get("/health", summary="Whether the server is up")
    async def health() -> HealthAnswer:
        return HealthAnswer(status="ok", captions=written, waiting=crowd.waiting)

    app.add_middleware(Guard, limits=limits, hosts=hosts, crowd=crowd)
    _answer_errors_in_json(app)
    for file in sorted(_STATIC.iterdir()):
        app.add_route("/" if file.name == "index.html" else f"/{file.name}", _serve(file))
    return app


def _serve(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Make what answers with one file of the page."""

    async def serve(_: Request) -> Response:
        return FileResponse(file)

    return serve


async def _read_picture(request: Request) -> tuple[str, bytes]:
    """Take the picture from a form's field ``image`` or from the body; returns its name and the file.

    Raises:
        RefusedError: If the form cannot be read (400), the body is of another kind (415) or a field is wrong (422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind not in (*MEDIA_TYPES, "application/octet-stream"):
            message = "Send the picture as the form field image (multipart/form-data) or as the body with its type."
            raise RefusedError(415, message)
        return "picture", await request.body()
    try:
        form = await request.form(max_files=2, max_fields=2, max_part_size=10_000)
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


def _plain(name: str) -> str:
    """Make a client's name fit for a sentence: one line, not too long."""
    return "".join(c if c.isprintable() else " " for c in name)[:80]


def _answer_errors_in_json(app: FastAPI) -> None:
    """Give every error the same form: ``{"error": SENTENCE}``."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        message = f"{first['loc'][-1]}: {first['msg']}, found {first.get('input')!r:.60}."
        return JSONResponse({"error": message}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse({"error": message}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "The server failed; its log says how."}, 500)
