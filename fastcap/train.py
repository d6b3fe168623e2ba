"""Train a captioner: `fastcap train [GROUP=CHOICE] [key=value]`, `-m` for a sweep."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fastcap.build import ConfigError, build_datamodule, build_module, build_trainer, resumed_model
from fastcap.cli import check_values, hydra_command, print_table
from fastcap.data.datamodule import CaptionDataModule
from fastcap.jobs.sweep import run_job, swept_first
from fastcap.model import FastCap
from fastcap.training.loggers import closing_loggers
from fastcap.training.machine import run_precision, seed_run
from fastcap.training.resume import only_writer, settle_resume
from fastcap.training.saving import exit_if_preempted, validate_best
from fastcap.utils.files import write_json
from fastcap.utils.provenance import describe_run


def train(cfg: DictConfig, run_dir: Path, overrides: Sequence[str] = (), job_type: str = "train") -> dict[str, float]:
    """Run one training; returns the validation metrics of its best checkpoint.

    The run's folder then holds ``checkpoints/{best,last}.ckpt``, ``metrics.csv``, ``results.json``,
    ``captions.json``, ``samples/``, ``refinement/`` and ``speed_quality.csv``.

    Args:
        cfg: The configuration.
        run_dir: The run's folder.
        overrides: What the command line changed: loggers name the run by it.
        job_type: ``train``, or ``sweep`` for a job of a multirun.
    """
    started = time.perf_counter()
    check_values("train", cfg, overrides)
    with only_writer(run_dir):
        cfg, resumed = settle_resume(cfg, run_dir)
        seed_run(cfg.seed)
        datamodule = build_datamodule(cfg, opened=resumed)
        model = resumed_model(cfg, datamodule.tokenizer, resumed) if resumed else None
        module = build_module(cfg, datamodule, model)
        cache_features(cfg, datamodule, module.model)
        if cfg.compile.backend:
            module.model.backbone.compile(**OmegaConf.to_container(cfg.compile))  # type: ignore[arg-type]
        trainer = build_trainer(cfg, run_dir, overrides, job_type, resumed)
        del resumed  # as large as the model and twice over
        with closing_loggers(trainer.loggers):
            trainer.fit(module, datamodule=datamodule, ckpt_path=cfg.resume, weights_only=True)
            metrics = validate_best(trainer, module, datamodule)
        if trainer.is_global_zero:
            minutes = (time.perf_counter() - started) / 60
            results = {
                **describe_run(cfg, overrides, "val", len(module.evaluation.predictions)),
                "resumed": cfg.resume,  # minutes are then those since
                "precision": trainer.precision,
                "metrics": metrics,
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "minutes": minutes,
                "parameters": sum(p.numel() for p in module.parameters()),
            }
            write_json(run_dir / "results.json", results)
            show(cfg, run_dir, trainer, metrics, minutes)
    return metrics


def show(cfg: DictConfig, run_dir: Path, trainer: L.Trainer, metrics: dict[str, float], minutes: float) -> None:
    """Print what came out, and what to do with it."""
    title = f"{cfg.name}: best checkpoint after {trainer.current_epoch} epochs, {minutes:.1f} minutes"
    print_table(title, {k: v for k, v in sorted(metrics.items()) if k.startswith("val/")})
    if best := getattr(trainer.checkpoint_callback, "best_model_path", ""):
        path = Path(best)
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        print(
            f"Checkpoint  {path}\n"
            f"Pictures    {run_dir / 'samples'}\n"
            f"Next        fastcap eval ckpt={path}\n"
            f"            fastcap caption --model {path} photo.jpg"
        )


def cache_features(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap) -> None:
    """Have the frozen backbone encode the training images' augmented views once, where ``data.feature_views`` asks.

    They are those that validation sees, in the run's precision. The cache's key names weights and precision.

    Raises:
        ConfigError: If the backbone is being trained: its features would be stale after the first step.
    """
    if not datamodule.feature_views:
        return
    if not getattr(model.backbone, "frozen", False):
        raise ConfigError(
            f"data.feature_views = {datamodule.feature_views} needs a frozen backbone (backbone.frozen=true, as "
            "backbone=efficientnet_lite0 has it)"
        )
    bf16 = run_precision(cfg.trainer).startswith("bf16")

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model.backbone.feature_map(model.normalize(images))

    digest = hashlib.sha256(b"bf16" if bf16 else b"")
    for name, value in getattr(model.backbone, "stem", model.backbone).net.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    datamodule.cache_features(encode, digest.hexdigest())


@hydra_command("train")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation CIDEr for sweepers, and None for a sweep's job that failed."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    with exit_if_preempted():
        if job.mode != RunMode.MULTIRUN:
            return train(cfg, run_dir, overrides).get("val/cider")
        overrides = swept_first(run_dir.parent, overrides)
        metrics = run_job(cfg, run_dir, lambda cfg: train(cfg, run_dir, overrides, "sweep"))
        return None if metrics is None else metrics.get("val/cider")


if __name__ == "__main__":
    main()
