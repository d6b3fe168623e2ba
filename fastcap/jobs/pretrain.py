"""Pretrain a backbone on class folders (ImageNet's layout): `python -m fastcap.jobs.pretrain data_dir=DIR`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fastcap.cli import hydra_command
from fastcap.jobs.pretraining_run import pretrain_backbone


@hydra_command("pretrain")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation accuracy for sweepers."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    return pretrain_backbone(cfg, run_dir, lambda images: {"classes": images.classes}, overrides).get("val/top1")


if __name__ == "__main__":
    main()
