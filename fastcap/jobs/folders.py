"""Which overrides tell a sweep's jobs apart, and the folders named by them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fastcap.training.loggers import short_name

_LONGEST = 100


def sweep_folder(name: str | None, now: str, run_id: str) -> str:
    """Name a sweep's folder: as asked for, else one that no other sweep has."""
    return str(name) if name else f"{now}_{run_id}"


def job_folder(name: str | None, number: int | str, sweep: str, overrides: Sequence[str]) -> str:
    """Name a job's folder below the sweep's.

    Args:
        name: The sweep's name; None for jobs that are numbered.
        number: The job's number.
        sweep: The sweep's folder, which holds ``multirun.yaml``.
        overrides: The job's overrides.

    Returns:
        For a named sweep the values that it varies, such as ``decoder-dense_lr-0.001``, whatever the job's number.
    """
    return value_name(swept(Path(sweep), overrides)) if name else str(number)


def value_name(overrides: Sequence[str]) -> str:
    """Turn overrides into a file name of plain letters, which needs no quotes in Hydra's ``ckpt=PATH`` either."""
    text = short_name(sorted(overrides))
    plain = re.sub(r"[^\w.+-]", "", text.replace("=", "-").replace(" ", "_"))[:_LONGEST]
    if re.sub(r"[^\w.+=\s-]", "", text) == text and len(text) <= _LONGEST:
        return plain or "job"
    return f"{plain}-{hashlib.sha256(' '.join(sorted(overrides)).encode()).hexdigest()[:8]}"


def swept(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """Those of a job's overrides that its sweep varies, by the sweep's ``multirun.yaml``."""
    written = sweep / "multirun.yaml"
    if not written.is_file():
        return list(overrides)
    hydra = OmegaConf.load(written).hydra
    varied = set(OmegaConf.select(hydra, "sweeper.params") or {})
    parser = OverridesParser.create()
    given = parser.parse_overrides([str(task) for task in hydra.overrides.task])
    varied |= {override.get_key_element() for override in given if override.is_sweep_override()}
    return [override for override in overrides if override.partition("=")[0] in varied]


def swept_first(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """A job's overrides, with those first that its sweep varies."""
    first = swept(sweep, overrides) if (sweep / "multirun.yaml").is_file() else []
    return first + [override for override in overrides if override not in first]


OmegaConf.register_new_resolver("fastcap.sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("fastcap.job_folder", job_folder, replace=True)
