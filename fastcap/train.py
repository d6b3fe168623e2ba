"""Train a captioner: `python -m fastcap.train [GROUP=CHOICE] [key=value]`, `-m` for a sweep."""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fastcap.build import (
    build_datamodule,
    build_module,
    build_trainer,
    settle_resume,
)
from fastcap.cli import UserError, hydra_command, print_table
from fastcap.jobs.folders import swept_first
from fastcap.jobs.jobs import run_job, write_json
from fastcap.jobs.prepare import prepare_backbone
from fastcap.module import CaptioningModule
from fastcap.recipes import run_recipe
from fastcap.training import EXIT_STATUS, Preempted, close_loggers, only_writer, requeue, seed_run
from fastcap.training.checkpoints import check_resume, read_checkpoint
from fastcap.utils.provenance import describe_run

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


def train(cfg: DictConfig, run_dir: Path, overrides: Sequence[str] = (), job_type: str = "train") -> dict[str, float]:
    """Run a training job; returns the validation metrics of its best checkpoint.

    The run's folder then holds ``checkpoints/{best,last}.ckpt``, ``metrics.csv``, ``results.json``,
    ``captions.json``, ``samples/``, ``refinement/`` and ``speed_quality.{csv,png}``.

    Args:
        cfg: The configuration.
        run_dir: The run's folder.
        overrides: What the command line changed: loggers name the run by it.
        job_type: ``train``, or ``sweep`` for a job of a multirun.
    """
    try:
        with only_writer(run_dir):
            return _train(settle_resume(cfg, run_dir), run_dir, overrides, job_type)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(
            f"{error.filename or run_dir}: {error.strerror}: the run stopped; with resume=last it goes on from its "
            "last checkpoint once it may write again"
        ) from error


def _train(cfg: DictConfig, run_dir: Path, overrides: Sequence[str], job_type: str) -> dict[str, float]:
    started = time.perf_counter()
    seed_run(cfg.seed)
    datamodule = build_datamodule(cfg)
    datamodule.prepare()
    if cfg.resume:
        check_resume(cfg.resume, datamodule.tokenizer)
    module = build_module(cfg, datamodule)
    prepare_backbone(cfg, datamodule, module.model)
    trainer = build_trainer(_validated(cfg), run_dir, overrides, job_type)
    loggers, done = trainer.loggers, False
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=cfg.resume, weights_only=True)
        trainer.loggers = []  # what follows is an earlier epoch's model: no point of the curves
        metrics = _best_metrics(trainer, module, datamodule)
        done = True
    finally:
        close_loggers(loggers, failed=not done)
    if trainer.is_global_zero:
        _report(cfg, run_dir, trainer, module, metrics, (time.perf_counter() - started) / 60, overrides)
    return metrics


def _validated(cfg: DictConfig) -> DictConfig:
    """See that a run shorter than its validations' interval is validated, or it would have no best checkpoint."""
    often, epochs = cfg.trainer.get("check_val_every_n_epoch"), cfg.trainer.get("max_epochs")
    if not (often and epochs and 0 < epochs < often):
        return cfg
    return OmegaConf.merge(cfg, {"trainer": {"check_val_every_n_epoch": epochs}})  # type: ignore[return-value]


def _best_metrics(trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule) -> dict[str, float]:
    """Metrics of the best checkpoint, which is validated once more unless it was the last one."""
    metrics = _numbers(trainer)
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint) or not checkpoint.best_model_path:
        return metrics
    best = checkpoint.best_model_path
    is_best = metrics.get(checkpoint.monitor or "") == float(checkpoint.best_model_score or 0)
    # Of equal scores the first one's checkpoint is kept.
    if not is_best or read_checkpoint(best)["global_step"] != trainer.global_step:
        trainer.validate(module, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
        metrics |= _numbers(trainer)
    return metrics


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _report(
    cfg: DictConfig,
    run_dir: Path,
    trainer: L.Trainer,
    module: CaptioningModule,
    metrics: dict[str, float],
    minutes: float,
    overrides: Sequence[str],
) -> None:
    results: dict[str, Any] = {
        **describe_run(cfg, overrides, "val", len(module.captioned)),
        "resumed": cfg.resume,  # minutes are then those since
        "metrics": metrics,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "minutes": minutes,
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    write_json(run_dir / "results.json", results)
    title = f"{cfg.name}: best checkpoint after {trainer.current_epoch} epochs, {minutes:.1f} minutes"
    print_table(title, {k: v for k, v in sorted(metrics.items()) if k.startswith("val/")})
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_path:
        best = Path(checkpoint.best_model_path)
        best = best.relative_to(Path.cwd()) if best.is_relative_to(Path.cwd()) else best
        print(
            f"Checkpoint  {best}\nPictures    {run_dir / 'samples'}\n"
            f"Next        make eval                      (the same numbers again; ARGS='refinement.num_steps=1')\n"
            f"            make caption PHOTO=photo.jpg   (caption any picture with it)"
        )


@hydra_command("train")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation CIDEr for sweepers, and None for a sweep's job that failed."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    try:
        follow = bool(cfg.get("recipe"))
        if job.mode != RunMode.MULTIRUN:
            return (run_recipe if follow else train)(cfg, run_dir, overrides).get("val/cider")
        overrides = swept_first(run_dir.parent, overrides)
        if follow:
            metrics = run_job(cfg, run_dir, lambda cfg: run_recipe(cfg, run_dir, overrides))
        else:
            metrics = run_job(cfg, run_dir, lambda cfg: train(cfg, run_dir, overrides, "sweep"))
        return None if metrics is None else metrics.get("val/cider")
    except Preempted as stop:
        if getattr(rank_zero_only, "rank", 0) != 0:
            sys.exit(0)  # else Lightning would kill the first process, which still has something to do
        print(f"fastcap: {stop}", file=sys.stderr)
        if (
            stop.signal == signal.SIGUSR1
        ):  # Slurm's `--signal` before the time limit; pre-emption itself queues it again
            requeue()
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main()
