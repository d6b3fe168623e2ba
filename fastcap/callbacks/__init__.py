"""What a run shows while it runs: pictures, tables, rates, checkpoints, and loggers that never stop it."""

from fastcap.callbacks.account import default_entity, has_account
from fastcap.callbacks.checkpoint import LastCheckpoint, RunCheckpoint
from fastcap.callbacks.loggers import close_loggers, csv_logger, tensorboard_logger, wandb_logger
from fastcap.callbacks.progress import RunProgressBar, quiet
from fastcap.callbacks.refinement import RefinementPictures
from fastcap.callbacks.run import RunInfo
from fastcap.callbacks.samples import SampleCaptions
from fastcap.callbacks.speed import SpeedQuality
from fastcap.callbacks.throughput import Throughput

__all__ = [
    "LastCheckpoint",
    "RefinementPictures",
    "RunCheckpoint",
    "RunInfo",
    "RunProgressBar",
    "SampleCaptions",
    "SpeedQuality",
    "Throughput",
    "close_loggers",
    "csv_logger",
    "default_entity",
    "has_account",
    "quiet",
    "tensorboard_logger",
    "wandb_logger",
]
