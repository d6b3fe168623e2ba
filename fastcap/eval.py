"""Score a checkpoint: `python -m fastcap.eval [ckpt=PATH] [split=val] [refinement.num_steps=8]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fastcap.build import (
    CONFIG_DIR,
    build_datamodule,
    build_module,
    build_trainer,
    load_checkpoint,
    newest_checkpoint,
)
from fastcap.cli import UserError, one_clear_error, print_table

OPEN_GROUPS = ("data", "refinement", "trainer", "metrics", "logger", "callbacks")


def evaluate(ckpt: Path, split: str, overrides: dict[str, Any], run_dir: Path) -> dict[str, float]:
    """Caption every image of a split with a checkpoint and score the captions.

    Args:
        ckpt: The checkpoint; its own configuration rebuilds data and model.
        split: A split of its data.
        overrides: Values by dotted key, of the groups that no weight depends on.
        run_dir: Where ``results.json``, ``captions.json`` and the sample picture go.

    Returns:
        Metrics by name.
    """
    loaded = load_checkpoint(ckpt, overrides)
    cfg = OmegaConf.create(loaded.config)
    assert isinstance(cfg, DictConfig)
    cfg.logger = None
    for name in ("checkpoint", "throughput", "summary"):
        cfg.callbacks.pop(name, None)
    datamodule = build_datamodule(cfg, loaded.tokenizer)
    module = build_module(cfg, datamodule, loaded.model)
    module.eval_split = split
    trainer = build_trainer(cfg, run_dir)
    trainer.validate(module, dataloaders=datamodule.dataloader(split), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        results = {"ckpt": str(ckpt), "split": split, "overrides": overrides, "metrics": metrics}
        (run_dir / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print_table(f"{ckpt}, {split}", {k: v for k, v in sorted(metrics.items()) if k.startswith(f"{split}/")})
        print(f"Captions    {run_dir / 'captions.json'}")
    return metrics


def checkpoint_overrides(task: list[str]) -> dict[str, Any]:
    """Pick the overrides meant for the checkpoint's configuration out of Hydra's list.

    Raises:
        UserError: If one names a group that the weights depend on.
    """
    chosen: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(task):
        key = override.key_or_group
        group = key.split(".")[0]
        if key in ("ckpt", "split", "name") or group == "hydra":
            continue
        if group not in OPEN_GROUPS or "." not in key:
            raise UserError(f"{key!r} is settled by the checkpoint; keys of {', '.join(OPEN_GROUPS)} may be overridden")
        chosen[key] = override.value()
    return chosen


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="eval")
@one_clear_error
def _main(cfg: DictConfig) -> float | None:
    hydra_cfg = HydraConfig.get()
    ckpt = Path(cfg.ckpt) if cfg.ckpt else newest_checkpoint()
    metrics = evaluate(
        ckpt, cfg.split, checkpoint_overrides(list(hydra_cfg.overrides.task)), Path(hydra_cfg.runtime.output_dir)
    )
    return metrics.get(f"{cfg.split}/cider")


def main() -> None:
    """Entry point. Keys of the open groups exist in the checkpoint only, so Hydra is told to add them (``++``)."""
    sys.argv[1:] = [f"++{a}" if a.split(".")[0] in OPEN_GROUPS else a for a in sys.argv[1:]]
    _main()


if __name__ == "__main__":
    main()
