"""Everything around one training: checkpoints, resume, signals, callbacks, loggers.

The names below are those that configurations build.
"""

from fastcap.training.log_wandb import wandb_logger
from fastcap.training.loggers import RunProgressBar, Throughput, csv_logger, tensorboard_logger
from fastcap.training.pictures import RefinementPictures, SampleCaptions, SpeedQuality
from fastcap.training.saving import LastCheckpoint, RunCheckpoint

__all__ = [
    "LastCheckpoint",
    "RefinementPictures",
    "RunCheckpoint",
    "RunProgressBar",
    "SampleCaptions",
    "SpeedQuality",
    "Throughput",
    "csv_logger",
    "tensorboard_logger",
    "wandb_logger",
]
