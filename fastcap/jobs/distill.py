"""Distil a packaged ImageNet encoder into a backbone, on any images: `python -m fastcap.jobs.distill [folder=DIR]`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fastcap.build import CONFIG_DIR
from fastcap.cli import one_clear_error
from fastcap.jobs.pretraining_run import pretrain_backbone


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="distill")
@one_clear_error
def main(cfg: DictConfig) -> float | None:
    """Entry point; returns the validation cosine similarity for sweepers."""
    job = HydraConfig.get()
    run_dir, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    return pretrain_backbone(cfg, run_dir, overrides=overrides).get("val/cosine")


if __name__ == "__main__":
    main()
