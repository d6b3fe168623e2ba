"""Everything around one training: checkpoints, resume, signals, callbacks, loggers."""

from fastcap.training.account import default_entity, has_account
from fastcap.training.batch_norm import BatchNormSync
from fastcap.training.checkpoint import LastCheckpoint, RunCheckpoint
from fastcap.training.files import AtomicCheckpointIO, CheckpointWriteError, is_url, join
from fastcap.training.loggers import close_loggers, csv_logger, tensorboard_logger, wandb_logger
from fastcap.training.machine import keep_freed_memory, seed_run
from fastcap.training.preemption import EXIT_STATUS, Preempted, StopSignal, requeue
from fastcap.training.progress import RunProgressBar, quiet
from fastcap.training.refinement_pictures import RefinementPictures
from fastcap.training.resume import (
    CheckpointError,
    FolderInUseError,
    last_good,
    only_writer,
    open_checkpoint,
    unfinished_run,
)
from fastcap.training.run_info import RunInfo
from fastcap.training.samples import SampleCaptions
from fastcap.training.sharded import ShardedStrategy, ShardingError
from fastcap.training.speed import SpeedQuality
from fastcap.training.throughput import Throughput

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
    "ShardedStrategy",
    "ShardingError",
    "SpeedQuality",
    "StopSignal",
    "Throughput",
    "close_loggers",
    "csv_logger",
    "default_entity",
    "has_account",
    "is_url",
    "join",
    "keep_freed_memory",
    "last_good",
    "only_writer",
    "open_checkpoint",
    "quiet",
    "requeue",
    "seed_run",
    "tensorboard_logger",
    "unfinished_run",
    "wandb_logger",
]
