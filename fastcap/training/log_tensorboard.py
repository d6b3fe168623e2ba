"""TensorBoard: scalars, pictures, captions as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from fastcap.training.media import MediaLogger
from fastcap.training.run_info import RunInfo


class RunTensorBoardLogger(TensorBoardLogger, MediaLogger):
    """Lightning's TensorBoard logger, with pictures and tables, in ``tensorboard/`` of a run's folder.

    Args:
        run: The run; where it is resumed in place, steps that are done again hide the earlier ones.
    """

    def __init__(self, run: RunInfo) -> None:
        options: dict[str, Any] = {"purge_step": run.resumed_step} if run.resume else {}
        super().__init__(str(run.folder), name="tensorboard", version="", default_hp_metric=False, **options)
        self._config = json.dumps(run.config, indent=1, ensure_ascii=False)
        self._config_shown = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars; the configuration goes before the first, as text."""
        if not self._config_shown:
            self.experiment.add_text("config", _code(self._config), 0)
            self._config_shown = True
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_pictures(self, key: str, pictures: Sequence[np.ndarray], captions: Sequence[str], step: int) -> None:
        """Log pictures, and their captions as text beside them."""
        for number, picture in enumerate(pictures):
            self.experiment.add_image(f"{key}/{number}", picture, step, dataformats="HWC")
        lines = [f"{number}. {caption}" for number, caption in enumerate(captions)]
        self.experiment.add_text(key, "  \n".join(lines), step)

    @rank_zero_only
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table as text; pictures are left out, ``log_pictures`` shows them."""
        kept = [at for at in range(len(columns)) if not any(isinstance(row[at], np.ndarray) for row in rows)]
        lines = [[columns[at] for at in kept], ["---"] * len(kept)]
        lines += [[_cell(row[at]) for at in kept] for row in rows]
        self.experiment.add_text(key, "\n".join("| " + " | ".join(line) + " |" for line in lines), step)

    @rank_zero_only
    def log_curve(self, key: str, points: Sequence[Mapping[str, float]], axis: str) -> None:
        """Log each point at its place in the list: TensorBoard's axis is a whole number."""
        for number, point in enumerate(points):
            for name, value in point.items():
                self.experiment.add_scalar(f"{key}/{name}", value, number)


def _cell(value: Any) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|").replace("\n", "<br>")


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
