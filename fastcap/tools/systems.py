"""Captioning systems side by side, each from an image file to text: ours, its exports, and the baselines.

Imports are inside the functions: a process that measures an export's memory must not hold torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS, AUTOREGRESSIVE = "fastcap", "fastcap-autoregressive"


@dataclass(frozen=True)
class Spec:
    """How to build a system, in this process or another."""

    path: str = ""  # checkpoint, .onnx file or "pretrained": one of ours; empty for a baseline
    num_steps: int | None = None  # refinement steps of ours; None for the model's own
    baseline: str = ""  # a name of fastcap.tools.baselines
    num_beams: int = 1  # of a baseline; 1 is greedy

    @property
    def label(self) -> str:
        """Name it in progress lines."""
        if self.baseline:
            return f"{self.baseline}, {self.num_beams} beam" + "s" * (self.num_beams > 1)
        return self.path + (f", {self.num_steps} steps" if self.num_steps else "")


def build(spec: Spec, threads: int) -> tuple[Callable[[str], Any], dict[str, Any]]:
    """Build a system.

    Returns:
        What captions an image file, and its row of the table as far as it is known without measuring.

    Raises:
        UserError: If a package is missing, or a model cannot be used.
    """
    if spec.baseline:
        import torch

        from fastcap.tools.baselines import NUM_TOKENS, Baseline

        torch.set_num_threads(threads)
        baseline = Baseline(spec.baseline, None, spec.num_beams)
        about: dict[str, Any] = {
            "system": spec.baseline,
            "runtime": "eager",
            "precision": "fp32",
            "params": baseline.parameters,
            "file_mb": baseline.file_bytes,
            "resolution": baseline.size,
            "beams": spec.num_beams,
            "steps": NUM_TOKENS,
            "weights": "random",
        }
        caption: Callable[[str], Any] = baseline.generate
    else:
        from fastcap.serving.captioner import Captioner

        captioner = Captioner.load(spec.path, num_threads=threads, num_steps=spec.num_steps)
        info = captioner.info
        steps, eager = info["num_steps"], info["kind"] == "eager"
        about = {
            "system": OURS if steps else AUTOREGRESSIVE,
            "runtime": info["kind"],
            "precision": info["precision"],
            "params": info["parameters"],
            # A checkpoint also holds what training needs: its weights are counted as the baselines' are.
            "file_mb": 4 * info["parameters"] if eager else info["file_bytes"],
            "resolution": info["image_size"],
            "beams": "",
            "steps": steps or "",
            "weights": "trained",
        }
        caption = captioner.caption
    about["file_mb"] = round(about["file_mb"] / 1e6, 2)
    return caption, about | {"threads": threads}


def peak_mb(spec: Spec, image: str, threads: int) -> float:
    """Measure the high-water mark of this process's resident memory after loading a system and captioning twice.

    Returns:
        Megabytes (1e6 bytes), everything that is imported included.
    """
    caption, _ = build(spec, threads)
    for _ in range(2):
        caption(image)
    return status_mb("VmHWM")


def status_mb(field: str) -> float:
    """Read a field of this process's status in MB (1e6 bytes); NaN where the system does not tell (no Linux)."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / 1e6
    except OSError:
        return float("nan")
