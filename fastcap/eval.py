"""Score a checkpoint: `python -m fastcap.eval [ckpt=PATH] [split=val] [refinement.num_steps=8]`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import fastcap
from fastcap.build import (
    build_datamodule,
    build_module,
    build_trainer,
    load_checkpoint,
)
from fastcap.cli import UserError, hydra_command, one_clear_error, print_table
from fastcap.data.coco import write_results
from fastcap.data.pixels import decode_image
from fastcap.metrics import caption_faults, count_lengths
from fastcap.reporting.evaluation import Evaluation, ScoredCaption, write_page, write_scores
from fastcap.training.checkpoints import find_checkpoint
from fastcap.training.loggers import closing_loggers
from fastcap.training.resume import FIXED
from fastcap.types import CaptionRecords
from fastcap.utils.files import write_json
from fastcap.utils.provenance import describe_run

OPEN_GROUPS = ("data", "refinement", "trainer", "metrics", "logger", "callbacks")


def evaluate(ckpt: Path | str, split: str, overrides: dict[str, Any], run_dir: Path) -> dict[str, float]:
    """Caption every image of a split with a checkpoint and score the captions.

    Args:
        ckpt: The checkpoint; its own configuration rebuilds data and model.
        split: A split of its data.
        overrides: Values by dotted key, of the groups that no weight depends on.
        run_dir: Where the outputs go: ``results.json`` (metrics, speed, faults), the captions in COCO's result format
            (``captions_SPLIT_fastcap_results.json``), ``scores.csv`` (every image) and ``report.html``, beside what
            the checkpoint's callbacks write.

    Returns:
        Metrics by name.
    """
    started = time.perf_counter()
    loaded = load_checkpoint(ckpt, overrides)
    cfg = OmegaConf.create(loaded.config)
    assert isinstance(cfg, DictConfig)
    if cfg.logger:
        cfg.logger.pop("csv", None)  # results.json holds the only row
    for name in ("checkpoint", "throughput", "summary"):
        cfg.callbacks.pop(name, None)
    datamodule = build_datamodule(cfg, loaded.tokenizer)
    module = build_module(cfg, datamodule, loaded.model)
    module.evaluation.splits = [split]
    named = (f"ckpt={ckpt}", f"split={split}", *(f"{key}={value}" for key, value in overrides.items()))
    trainer = build_trainer(cfg, run_dir, named, job_type="eval")
    with closing_loggers(trainer.loggers):
        trainer.validate(module, dataloaders=datamodule.dataloader(split), verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        records = datamodule.records(split)
        scores = module.evaluation.image_scores
        files = {i: Path(path).name for i, path in zip(records.image_ids, records.paths, strict=False)}
        captions = [
            ScoredCaption(
                p.image_id, p.caption, p.references, scores[p.image_id], files.get(p.image_id, ""), math.exp(p.score)
            )
            for p in module.evaluation.predictions
        ]
        processes = f", each of {n} processes" if (n := trainer.world_size) > 1 else ""
        speed = {
            "images_per_s": metrics["time/eval_images_per_s"],
            "batch_size": datamodule.eval_batch_size,
            "threads": torch.get_num_threads(),
            "device": f"{trainer.strategy.root_device}{processes}",
        }
        results = {
            **describe_run(cfg, named, split, len(captions)),
            "ckpt": str(ckpt),
            "overrides": overrides,
            "precision": trainer.precision,
            "metrics": metrics,
            "minutes": (time.perf_counter() - started) / 60,
            "parameters": sum(p.numel() for p in module.parameters()),
            "tokenizer": module.evaluation.metrics.tokenizer_name,
            "speed": speed,
            "faults": caption_faults([row.caption for row in captions]),
            "lengths": {
                "captions": count_lengths([row.caption for row in captions]),
                "references": count_lengths([text for row in captions for text in row.references]),
            },
        }
        coco = run_dir / f"captions_{split}_fastcap_results.json"
        write_results(coco, [(records.own_ids.get(row.image_id, row.image_id), row.caption) for row in captions])
        write_scores(captions, run_dir / "scores.csv")
        print_table(f"{ckpt}, {split}", {k: v for k, v in sorted(metrics.items()) if k.startswith(f"{split}/")})
        print(f"Captions    {coco}\nEach image  {run_dir / 'scores.csv'}")
        evaluation = _evaluation(results, captions, cfg)
        if write_page(evaluation, run_dir / "report.html", _album(records)):
            print(f"Report      {run_dir / 'report.html'}")
        write_json(run_dir / "results.json", results)  # last: a folder that holds it is finished
    return metrics


def _evaluation(results: dict[str, Any], captions: list[ScoredCaption], cfg: DictConfig) -> Evaluation:
    """Put together what the report says."""
    split, prefix = results["split"], f"{results['split']}/"
    code = (results["commit"] or "unknown") + (" with changes" if results["dirty"] else "")
    return Evaluation(
        title=f"{cfg.name}: evaluation on {split}",
        subtitle=f"{len(captions):,} images, captioned by {results['ckpt']}",
        metrics={k.removeprefix(prefix): v for k, v in results["metrics"].items() if k.startswith(prefix)},
        captions=captions,
        tokenizer=results["tokenizer"],
        speed=results["speed"],
        settings={
            "Checkpoint": results["ckpt"],
            "Overrides": ", ".join(f"{k}={v}" for k, v in results["overrides"].items()) or "none",
            "Refinement": ", ".join(f"{k} {v}" for k, v in cfg.refinement.items() if not str(k).startswith("_")),
            "Parameters": f"{results['parameters']:,}",
            "Code": f"FastCap {fastcap.__version__}, commit {code}; torch {torch.__version__}",
        },
        config=OmegaConf.to_yaml(cfg, resolve=True),
    )


def _album(records: CaptionRecords) -> Any:
    """A function from image id to pixels for people to look at: the photograph itself where there is a file."""
    positions = {image_id: position for position, image_id in enumerate(records.image_ids)}

    def picture(image_id: int) -> np.ndarray:
        position = positions[image_id]
        if records.paths:
            return decode_image(records.paths[position], 640, square=False)
        return records.load_image(position, 256)

    return picture


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
        if group not in OPEN_GROUPS or "." not in key or key in FIXED:
            raise UserError(f"{key!r} is settled by the checkpoint; others of {', '.join(OPEN_GROUPS)} may change")
        chosen[key] = override.value()
    return chosen


@hydra_command("eval")
def _main(cfg: DictConfig) -> float | None:
    hydra_cfg = HydraConfig.get()
    ckpt = find_checkpoint(cfg.ckpt)
    metrics = evaluate(
        ckpt, cfg.split, checkpoint_overrides(list(hydra_cfg.overrides.task)), Path(hydra_cfg.runtime.output_dir)
    )
    return metrics.get(f"{cfg.split}/cider")


@one_clear_error
def main() -> None:
    """Entry point. Keys of the open groups exist in the checkpoint only, so Hydra is told to add them (``++``)."""
    for number, argument in enumerate(sys.argv[1:], start=1):
        key = argument.lstrip("+~").partition("=")[0]
        if key in OPEN_GROUPS:
            raise UserError(
                f"{argument}: the checkpoint has chosen; single keys may be overridden, such as {key}.KEY=VALUE"
            )
        if key.split(".")[0] in OPEN_GROUPS:
            sys.argv[number] = f"++{argument.lstrip('+')}"
    _main()


if __name__ == "__main__":
    main()
