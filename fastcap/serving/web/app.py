"""The application: the page, the caption API, its OpenAPI description and the health check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import fastcap
from fastcap.data.errors import DataError
from fastcap.serving.web.uploads import FORMATS, Limits, RefusedError, check_picture, read_picture
from fastcap.types import RefinementStep

if TYPE_CHECKING:
    from fastcap.serving.captioner import Captioner

_STATIC = Path(__file__).parent / "static"
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


class CaptionAnswer(BaseModel):
    """A caption and how it came about."""

    caption: str
    confidence: float = Field(description="Geometric mean of the words' probabilities, 0 to 1.")
    steps: list[RefinementStep] | None = Field(description="The draft after each step, where record_steps was set.")
    expert_weights: list[float] | None = Field(description="Weight of each expert, where the model has experts.")
    milliseconds: dict[str, float] = Field(description="Time of each part; `queue` is the wait for others.")


class ModelAnswer(BaseModel):
    """The model behind the API, and what it takes."""

    model: dict[str, Any] = Field(description="Kind, precision, parameters, file size, refinement steps, ...")
    max_bytes: int = Field(description="Largest upload.")
    max_pixels: int = Field(description="Largest picture, width times height.")
    media_types: list[str]


class HealthAnswer(BaseModel):
    """The server is up."""

    status: str
    captions: int = Field(description="Captions written since the start.")
    waiting: int = Field(description="Uploads in flight or in the queue, this moment.")


class ErrorAnswer(BaseModel):
    """Why a request was turned away."""

    error: str = Field(description="One sentence.")


_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"image": _BINARY}, "required": ["image"], "additionalProperties": False}
_BODY = {
    "required": True,
    "description": "The picture, as a form's field `image` or as the body itself.",
    "content": {
        "multipart/form-data": {"schema": _FORM},
        **{kind: {"schema": _BINARY} for kind in (*FORMATS.values(), "application/octet-stream")},
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The form cannot be read.",
        403: "Asked by another site's page.",
        408: "The upload took too long.",
        413: "Too many bytes or pixels.",
        415: "No picture of a known format.",
        422: "A field is missing or wrong, or the picture is damaged.",
        503: "Too many pictures are waiting.",
    }.items()
}


def create_app(captioner: Captioner, limits: Limits | None = None, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Build the application around a captioner.

    Captions are written one at a time by one thread: the runtime shares each among the cores, and a second one beside
    it would only slow both.

    Args:
        captioner: What writes the captions.
        limits: What a request may ask for.
        hosts: Names under which the server may be called, which keeps DNS rebinding out; ``*`` allows any,
            ``*.example.org`` those below a domain.
    """
    limits = limits or Limits()
    worker = ThreadPoolExecutor(1, thread_name_prefix="captioner")
    written = waiting = 0

    app = FastAPI(
        title="FastCap",
        version=fastcap.__version__,
        description="Captions for pictures, written whole and at once, then refined.",
        docs_url=None,  # FastAPI's own pages load scripts and fonts from elsewhere
        redoc_url=None,
    )

    def write(data: bytes, name: str, record_steps: bool, asked: float) -> CaptionAnswer:
        queue = time.perf_counter() - asked
        check_picture(data, name, limits)
        try:
            caption = captioner.caption(data, record_steps=record_steps)
        except DataError as error:
            raise RefusedError(422, f"{name}: the picture is damaged and cannot be decoded.") from error
        return CaptionAnswer(
            caption=caption.text,
            confidence=caption.confidence,
            steps=caption.steps if record_steps else None,
            expert_weights=caption.expert_weights,
            milliseconds={**caption.milliseconds, "queue": queue * 1000},
        )

    @app.post("/api/caption", responses=_REFUSALS, openapi_extra={"requestBody": _BODY}, summary="Caption a picture")
    async def caption_picture(
        request: Request, record_steps: Annotated[bool, Query(description="Answer with every step.")] = False
    ) -> CaptionAnswer:
        nonlocal written, waiting
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise RefusedError(403, "This server takes pictures only from its own page.")
        if waiting >= limits.max_waiting:
            raise RefusedError(503, f"{waiting} pictures are waiting already; try again in a moment.")
        waiting += 1
        try:
            name, data = await read_picture(request, limits)
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(worker, write, data, name, record_steps, time.perf_counter())
        finally:
            waiting -= 1
        written += 1
        return answer

    @app.get("/api/model", summary="The model and the limits")
    async def model() -> ModelAnswer:
        return ModelAnswer(
            model=captioner.info,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            media_types=list(FORMATS.values()),
        )

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the server is up")
    async def health() -> HealthAnswer:
        return HealthAnswer(status="ok", captions=written, waiting=waiting)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.middleware("http")
    async def add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        if response.headers.get("content-type", "").startswith("text/plain"):  # Starlette's own refusal of the host
            host = request.headers.get("host", "")
            message = f"This server is not called {host!r:.60}: start it with --allowed-hosts."
            response = JSONResponse({"error": message}, response.status_code)
        response.headers.update(_HEADERS)
        return response

    app.mount("/static", StaticFiles(directory=_STATIC))
    _answer_errors_in_json(app)
    return app


def _answer_errors_in_json(app: FastAPI) -> None:
    """Give every error the same form: ``{"error": SENTENCE}``."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        # The rest of the upload may not have been read.
        headers = {"connection": "close"} | ({"retry-after": "1"} if error.status == 503 else {})
        return JSONResponse({"error": error.message}, error.status, headers)

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
