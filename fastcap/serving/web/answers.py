"""What the API answers with, as its OpenAPI description tells it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from fastcap.types import RefinementStep


class CaptionAnswer(BaseModel):
    """A caption and how it came about."""

    caption: str
    confidence: float = Field(description="Geometric mean of the words' probabilities, 0 to 1.")
    num_steps: int | None = Field(description="Refinement steps; none where the model writes word after word.")
    steps: list[RefinementStep] | None = Field(description="Every step, where record_steps was set.")
    expert_weights: list[float] | None = Field(description="Weight of each expert, where the model has experts.")
    milliseconds: dict[str, float] = Field(description="Time of each part; `queue` is the wait for others.")


class ModelAnswer(BaseModel):
    """The model behind the API, and what it takes."""

    model: dict[str, Any] = Field(description="Kind, precision, parameters, file size, ...")
    num_steps: int | None = Field(description="Refinement steps where a request names none.")
    max_steps: int
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
