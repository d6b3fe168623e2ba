"""The loggers that a configuration may name. Each is made from what is known of the run."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from fastcap.training.account import has_account
from fastcap.training.log_tensorboard import RunTensorBoardLogger
from fastcap.training.log_wandb import RunWandbLogger, define_metrics
from fastcap.training.rows import RowWriter
from fastcap.training.run_info import RunInfo

log = logging.getLogger(__name__)
ID_FILE = "wandb_id.txt"


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, in a run's own folder; a run resumed in place keeps its earlier rows.

    Args:
        run: The run. Rows from ``resumed_step`` on are dropped: those steps are done again.
    """

    def __init__(self, run: RunInfo) -> None:
        super().__init__(str(run.folder), name=None, version="", flush_logs_every_n_steps=1)
        self._path = run.folder / "metrics.csv"
        self._resumed_step = run.resumed_step if run.resume else None
        self._writer: RowWriter | None = None
        if run.resume:
            _ = self.experiment  # drops the rows of steps that are done again, even if the run breaks off here

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which starts with the earlier rows."""
        if self._writer is None:
            self._writer = self._experiment = RowWriter(self._path, self._resumed_step)  # type: ignore[assignment]
        return self._writer


def csv_logger(run: RunInfo) -> Logger:
    """Log scalars to ``metrics.csv`` in the run's folder."""
    return RunCSVLogger(run)


def tensorboard_logger(run: RunInfo) -> Logger:
    """Log scalars, pictures and captions for TensorBoard, into ``tensorboard/`` in the run's folder.

    Raises:
        ValueError: If TensorBoard is not installed.
    """
    try:
        return RunTensorBoardLogger(run)
    except ModuleNotFoundError as error:
        raise ValueError("TensorBoard is not installed: pip install -c constraints.txt -e '.[tensorboard]'") from error


def wandb_logger(
    run: RunInfo,
    project: str = "fastcap",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    log_checkpoint: bool = False,
) -> Logger | None:
    """Log to Weights & Biases: online with an account set up, else offline into the run's folder.

    ``WANDB_MODE`` decides where it is set. A W&B that fails is a warning and None, never the end of the run.

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
        mode = _mode()
        if mode == "disabled":
            return None
        experiment = None
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                experiment = _start(run, attempt, project, entity, group, name)
                break
            except Exception as error:
                log.warning("W&B did not start in mode %s: %s", attempt, error)
        if experiment is None:
            return None
        define_metrics(experiment)
        return RunWandbLogger(
            experiment=experiment, project=project, save_dir=str(run.folder), log_model=log_checkpoint
        )
    except Exception as error:
        log.warning("W&B logger left out: %s", error)
        return None


def _mode() -> Any:
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    try:
        return "online" if has_account() else "offline"
    except Exception as error:
        log.warning("W&B goes offline: %s", error)
        return "offline"


def _start(run: RunInfo, mode: Any, project: str, entity: str | None, group: str | None, name: str | None) -> Any:
    import wandb

    return wandb.init(
        project=project,
        entity=entity,
        group=group,
        name=name or run.name,
        job_type=run.job_type,
        config=run.config,
        id=_run_id(run),
        resume="allow" if mode == "online" else None,
        dir=str(run.folder),
        mode=mode,
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
    )


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


@contextmanager
def closing_loggers(loggers: Iterable[Logger]) -> Iterator[None]:
    """End W&B's run with the block, as failed where that fails: the next job of a multirun gets one of its own."""
    kept, failed = list(loggers), True
    try:
        yield
        failed = False
    finally:
        for logger in kept:
            if isinstance(logger, RunWandbLogger):
                logger.close(failed)
