"""What a run logged, read from the CSV that Lightning's logger writes."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One logged value of a metric.

    Attributes:
        step: Optimiser steps done.
        epoch: Epochs done before this one.
        value: The value, finite or not.
    """

    step: int
    epoch: int
    value: float


def read_history(path: Path) -> dict[str, list[Point]]:
    """Read a CSV of Lightning's, less what was logged when the best checkpoint was validated again at the end."""
    history: dict[str, dict[tuple[int, int], Point]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(line for line in file if "\0" not in line):
                step, epoch = _number(row.get("step")), _number(row.get("epoch"))
                if step is None or epoch is None or not (math.isfinite(step) and math.isfinite(epoch)):
                    continue
                for name, text in row.items():
                    value = _number(text) if name not in ("step", "epoch", None) else None
                    if value is not None:
                        point = Point(int(step), int(epoch), value)
                        history.setdefault(name, {}).setdefault((point.step, point.epoch), point)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, csv.Error) as error:
        log.warning("%s left out: %s", path, error)
    again = _validated_again(list(history.get("val/cider", {}).values()))
    return {name: [p for key, p in points.items() if key != again] for name, points in history.items()}


def _validated_again(scores: Sequence[Point]) -> tuple[int, int] | None:
    """Step and epoch of a last score that repeats an earlier one right after the last epoch."""
    if len(scores) < 2:
        return None
    last, before = scores[-1], scores[-2]
    repeated = last.step == before.step + 1 and any(last.value == point.value for point in scores[:-1])
    return (last.step, last.epoch) if repeated else None


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
