"""Distil a packaged ImageNet encoder into a backbone, on any images: `fastcap distill [folder=DIR]`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fastcap.cli import hydra_command
from fastcap.jobs.pretrain import pretrain_backbone


@hydra_command("distill")
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation cosine similarity for sweepers."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    return pretrain_backbone(cfg, run_dir, overrides=overrides).get("val/cosine")


if __name__ == "__main__":
    main()
