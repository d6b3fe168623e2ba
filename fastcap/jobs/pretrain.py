"""Pretrain a backbone on class folders (ImageNet's layout): `fastcap pretrain data_dir=DIR`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fastcap.build import build_backbone, build_trainer, construct
from fastcap.cli import hydra_command, print_table
from fastcap.data.images import ImageDataModule
from fastcap.jobs.pretraining import BackbonePretraining
from fastcap.training import check_weights, closing_loggers, seed_run, settle_resume
from fastcap.utils.files import write_json


def pretrain_backbone(
    cfg: DictConfig,
    run_dir: Path,
    facts: Callable[[ImageDataModule], dict[str, Any]] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, float]:
    """Run a job; its folder then holds ``backbone.safetensors``, ``checkpoints/last.ckpt`` and ``results.json``.

    Args:
        cfg: With the nodes images, module, backbone, optim, trainer, logger and callbacks.
        run_dir: The run's folder.
        facts: Arguments of the module that only the images know.
        overrides: What the command line changed: loggers name the run by it.

    Returns:
        The last validation's metrics.
    """
    started = time.perf_counter()
    cfg = settle_resume(cfg, run_dir)
    seed_run(cfg.seed)
    pixels = max(int(cfg.image_size), int(cfg.get("teacher_size") or 0))
    images: ImageDataModule = construct(cfg.images, image_size=pixels, seed=cfg.seed)
    module: BackbonePretraining = construct(
        cfg.module,
        backbone=build_backbone(cfg, fresh=not cfg.resume),
        config=OmegaConf.to_container(cfg, resolve=True),
        optimizer=instantiate(cfg.optim.optimizer),
        schedule=instantiate(cfg.optim.schedule),
        weight_decay=cfg.optim.weight_decay,
        seed=cfg.seed,
        **(facts(images) if facts else {}),
    )
    if cfg.resume:
        check_weights(cfg.resume, module.trained_state())
    trainer = build_trainer(cfg, run_dir, overrides)
    with closing_loggers(trainer.loggers):
        trainer.fit(module, datamodule=images, ckpt_path=cfg.resume, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        minutes = (time.perf_counter() - started) / 60
        results = {"metrics": metrics, "epochs": trainer.current_epoch, "steps": trainer.global_step}
        results |= {"precision": trainer.precision, "minutes": minutes}
        results |= {"parameters": sum(p.numel() for p in module.backbone.parameters())}
        write_json(run_dir / "results.json", results)
        title = f"{cfg.name}: {trainer.current_epoch} epochs, {minutes:.1f} minutes"
        print_table(title, {k: v for k, v in sorted(metrics.items()) if k.startswith("val/")})
        weights = module.weights_path
        print(f'Weights     {weights}\nNext        make train ARGS="backbone=... init.backbone={weights}"')
    return metrics


@hydra_command("pretrain")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation accuracy for sweepers."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    return pretrain_backbone(cfg, run_dir, lambda images: {"classes": images.classes}, overrides).get("val/top1")


if __name__ == "__main__":
    main()
