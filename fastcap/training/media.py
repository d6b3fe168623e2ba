"""What a logger can do beside scalars: pictures, tables and curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from PIL import Image


class MediaLogger(ABC):
    """A logger that also takes pictures, tables and curves."""

    @abstractmethod
    def log_pictures(self, key: str, pictures: Sequence[np.ndarray], captions: Sequence[str], step: int) -> None:
        """Show pictures (uint8, RGB, (H, W, 3)) with a line of text each."""

    @abstractmethod
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table; a cell may be a picture."""

    @abstractmethod
    def log_curve(self, key: str, points: Sequence[Mapping[str, float]], axis: str) -> None:
        """Show one curve for each name of the points but ``axis``, drawn over ``axis``."""


def media_loggers(trainer: L.Trainer) -> list[MediaLogger]:
    """Find the loggers of a run that show more than scalars."""
    return [logger for logger in trainer.loggers if isinstance(logger, MediaLogger)]


def media_step(trainer: L.Trainer) -> int:
    """Return the training step that a validation's scalars are logged at: the last one done, counted from zero."""
    return max(trainer.global_step - 1, 0)


def read_picture(path: Path) -> np.ndarray:
    """Read a picture that was drawn. (H, W, 3), uint8, RGB."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def stage_name(trainer: L.Trainer) -> str:
    """Name a validation for file names: its epoch in training, ``evaluated`` where a checkpoint is scored."""
    fitting = trainer.state.fn == L.pytorch.trainer.states.TrainerFn.FITTING
    return f"epoch_{trainer.current_epoch:03d}" if fitting else "evaluated"
