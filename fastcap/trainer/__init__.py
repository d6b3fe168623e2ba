"""What Lightning's trainer is given: checkpoint files, BatchNorm over processes, and an end in good order."""

from fastcap.trainer.batch_norm import BatchNormSync
from fastcap.trainer.files import AtomicCheckpointIO, CheckpointWriteError, is_url, join
from fastcap.trainer.memory import keep_freed_memory
from fastcap.trainer.preemption import EXIT_STATUS, Preempted, StopSignal, requeue
from fastcap.trainer.resume import (
    CheckpointError,
    FolderInUseError,
    last_good,
    only_writer,
    open_checkpoint,
    unfinished_run,
)
from fastcap.trainer.sharded import ShardedStrategy, ShardingError

__all__ = [
    "EXIT_STATUS",
    "AtomicCheckpointIO",
    "BatchNormSync",
    "CheckpointError",
    "CheckpointWriteError",
    "FolderInUseError",
    "Preempted",
    "ShardedStrategy",
    "ShardingError",
    "StopSignal",
    "is_url",
    "join",
    "keep_freed_memory",
    "last_good",
    "only_writer",
    "open_checkpoint",
    "requeue",
    "unfinished_run",
]
