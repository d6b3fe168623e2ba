"""Everything around one training: checkpoints, resume, signals, callbacks, loggers."""

from fastcap.training.checkpoint import LastCheckpoint, RunCheckpoint, validate_best
from fastcap.training.files import AtomicCheckpointIO, CheckpointWriteError, is_url, join
from fastcap.training.log_wandb import default_entity, has_account, wandb_logger
from fastcap.training.loggers import RunInfo, closing_loggers, csv_logger, tensorboard_logger
from fastcap.training.machine import BatchNormSync, keep_freed_memory, run_precision, seed_run, validation_interval
from fastcap.training.pictures import RefinementPictures, SampleCaptions
from fastcap.training.preemption import EXIT_STATUS, Preempted, StopSignal, exit_if_preempted, requeue
from fastcap.training.progress import RunProgressBar, Throughput, quiet
from fastcap.training.resume import (
    CheckpointError,
    FolderInUseError,
    check_settings,
    check_weights,
    differences,
    last_good,
    only_writer,
    open_checkpoint,
    settle_resume,
    unfinished_run,
)
from fastcap.training.speed import SpeedQuality

__all__ = [
    "EXIT_STATUS",
    "AtomicCheckpointIO",
    "BatchNormSync",
    "CheckpointError",
    "CheckpointWriteError",
    "FolderInUseError",
    "LastCheckpoint",
    "Preempted",
    "RefinementPictures",
    "RunCheckpoint",
    "RunInfo",
    "RunProgressBar",
    "SampleCaptions",
    "SpeedQuality",
    "StopSignal",
    "Throughput",
    "check_settings",
    "check_weights",
    "closing_loggers",
    "csv_logger",
    "default_entity",
    "differences",
    "exit_if_preempted",
    "has_account",
    "is_url",
    "join",
    "keep_freed_memory",
    "last_good",
    "only_writer",
    "open_checkpoint",
    "quiet",
    "requeue",
    "run_precision",
    "seed_run",
    "settle_resume",
    "tensorboard_logger",
    "unfinished_run",
    "validate_best",
    "validation_interval",
    "wandb_logger",
]
