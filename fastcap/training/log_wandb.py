"""Weights & Biases: how a run starts there, what is shown under which name; nothing of it ever stops a run."""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from fastcap.training.loggers import RunInfo

log = logging.getLogger(__name__)

ID_FILE = "wandb_id.txt"
STEP = "trainer/global_step"
# Validation metrics whose best value a run's summary keeps.
HIGHEST = ("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "meteor")
LOWEST = ("val/loss", "dlag/mae")


def has_account() -> bool:
    """Tell whether an API key is set up, by WANDB_API_KEY or ``wandb login``; asks no server."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def default_entity() -> str | None:
    """Ask the server for the account's own entity."""
    import wandb

    return wandb.Api().default_entity


def wandb_logger(
    run: RunInfo,
    project: str = "fastcap",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    log_checkpoint: bool = False,
) -> Logger | None:
    """Log to Weights & Biases: online with an account set up, else offline into the run's folder.

    ``WANDB_MODE`` decides where it is set. A W&B that fails is a warning and None.

    Args:
        run: The run; one that is resumed goes on under its old id.
        project: W&B project.
        entity: W&B user or team; None for the account's own.
        group: Runs that belong together.
        name: The run's name; None for its overrides.
        log_checkpoint: Keep the best and last checkpoints as artifacts.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    try:
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if has_account() else "offline")
    except Exception as error:
        log.warning("W&B goes offline: %s", error)
        mode = "offline"
    for attempt in () if mode == "disabled" else dict.fromkeys((mode, "offline")):
        try:
            import wandb

            experiment = wandb.init(
                project=project,
                entity=entity,
                group=group,
                name=name or run.name,
                job_type=run.job_type,
                config=run.config,
                id=_run_id(run),
                resume="allow" if attempt == "online" else None,
                dir=str(run.folder),
                mode=attempt,
                reinit="finish_previous",
                settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
            )
            define_metrics(experiment)
            return RunWandbLogger(
                experiment=experiment, project=project, save_dir=str(run.folder), log_model=log_checkpoint
            )
        except Exception as error:
            log.warning("W&B did not start in mode %s: %s", attempt, error)
    return None


def _run_id(run: RunInfo) -> str:
    """The run's W&B id: as before where the run goes on, in its folder or from its checkpoint; else a new one.

    Jobs of a sweep that all start from one checkpoint are runs of their own.
    """
    folders = [run.folder] if run.resume else []
    if run.resume and run.job_type != "sweep":
        folders.append(run.resume.resolve().parent.parent)
    known = [folder / ID_FILE for folder in folders if (folder / ID_FILE).is_file()]
    new = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
    run_id = known[0].read_text(encoding="utf-8").strip() if known else new
    (run.folder / ID_FILE).write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


def define_metrics(run: Any) -> None:
    """Give each scalar its axis, and let the summary keep the best beside the last value."""
    run.define_metric(STEP, hidden=True)
    run.define_metric("epoch", hidden=True)
    for pattern in ("train/*", "moe/*"):
        run.define_metric(pattern, step_metric=STEP)
    for pattern in ("val/*", "test/*", "dlag/*", "time/*"):
        run.define_metric(pattern, step_metric="epoch")
    for name in HIGHEST:
        run.define_metric(f"val/{name}", step_metric="epoch", summary="max,last")
    for name in LOWEST:
        run.define_metric(name, step_metric="epoch", summary="min,last")
    run.define_metric("time/images_per_s", step_metric="epoch", summary="mean,last")


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """Run a method in the first process alone; what fails is one warning, never the end of a run."""

    @rank_zero_only
    @functools.wraps(method)
    def call(self: RunWandbLogger, *arguments: Any, **options: Any) -> None:
        try:
            method(self, *arguments, **options)
        except Exception as error:
            if not self.failed:
                log.warning("W&B failed, and further failures are not told: %s", error)
            self.failed = True

    return call


class RunWandbLogger(WandbLogger):
    """Lightning's W&B logger with tables, pictures and curves, none of whose failures ends a run."""

    failed = False
    log_metrics = _guarded(WandbLogger.log_metrics)
    after_save_checkpoint = _guarded(WandbLogger.after_save_checkpoint)
    finalize = _guarded(WandbLogger.finalize)

    @_guarded
    def close(self, failed: bool = False) -> None:
        """End the run."""
        self.experiment.finish(exit_code=int(failed))

    @_guarded
    def log_pictures(self, key: str, pictures: Sequence[np.ndarray], captions: Sequence[str], step: int) -> None:
        """Log pictures (uint8, RGB, (H, W, 3)) with a line of text each, as a list of W&B images."""
        self.log_image(key, _same_size(pictures), step, caption=list(captions))

    @_guarded
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table; cells that are arrays become pictures."""
        import wandb

        data = [[wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in rows]
        self.log_table(key, columns=list(columns), data=data, step=step)

    @_guarded
    def log_curve(self, key: str, points: Sequence[Mapping[str, float]], axis: str) -> None:
        """Log each point as ``KEY/NAME``, drawn over ``KEY/AXIS``: curves of several runs then share a panel."""
        self.experiment.define_metric(f"{key}/{axis}", hidden=True)
        for name in points[0]:
            if name != axis:
                self.experiment.define_metric(f"{key}/{name}", step_metric=f"{key}/{axis}")
        for point in points:
            self.experiment.log({f"{key}/{name}": value for name, value in point.items()})


def wandb_loggers(trainer: L.Trainer) -> list[RunWandbLogger]:
    """The loggers of a run that show more than scalars."""
    return [logger for logger in trainer.loggers if isinstance(logger, RunWandbLogger)]


def log_step(trainer: L.Trainer) -> int:
    """The training step that a validation's scalars are logged at: the last one done, counted from zero."""
    return max(trainer.global_step - 1, 0)


def read_picture(path: Path) -> np.ndarray:
    """Read a picture that was drawn. (H, W, 3), uint8, RGB."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _same_size(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Fill up with white to the largest height and width: W&B shows a list at the size of its first picture."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    return [
        np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures
    ]
