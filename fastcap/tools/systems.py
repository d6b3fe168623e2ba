"""Captioning systems side by side, each from an image file to text: ours, its exports, and the baselines.

Imports are inside the functions: a process that measures an export's memory must not hold torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcap.utils.errors import UserError

OURS, AUTOREGRESSIVE = "fastcap", "fastcap-autoregressive"
RANDOM_NAME = "random-weights"  # the `name` in the configuration of a checkpoint that nobody trained


@dataclass(frozen=True)
class Spec:
    """How to build a system, in this process or another.

    Attributes:
        path: Checkpoint, ``.onnx`` file or ``pretrained``: one of ours; empty for a baseline.
        num_steps: Refinement steps of ours, or None for the model's own.
        baseline: A name of ``fastcap.tools.baselines``.
        size: Side of a baseline's images, in pixels.
        num_beams: Beams of a baseline; 1 is greedy.
        num_tokens: New tokens of a baseline's caption.
    """

    path: str = ""
    num_steps: int | None = None
    baseline: str = ""
    size: int = 224
    num_beams: int = 1
    num_tokens: int = 12

    @property
    def label(self) -> str:
        """Name it in progress lines."""
        if self.baseline:
            return f"{self.baseline}, {self.size} px, {self.num_beams} beam" + "s" * (self.num_beams > 1)
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

        from fastcap.tools.baselines import Baseline

        torch.set_num_threads(threads)
        baseline = Baseline(spec.baseline, spec.size, spec.num_beams, spec.num_tokens)
        about: dict[str, Any] = {
            "system": spec.baseline,
            "runtime": "eager",
            "precision": "fp32",
            "params": baseline.parameters,
        }
        about |= {"file_mb": baseline.file_bytes, "resolution": spec.size, "beams": spec.num_beams}
        about |= {"steps": spec.num_tokens, "weights": "random"}
        caption: Callable[[str], Any] = baseline.generate
    else:
        from fastcap.serving.captioner import Captioner

        captioner = Captioner.load(spec.path, num_threads=threads, num_steps=spec.num_steps)
        info = captioner.info
        steps, eager = info["num_steps"], info["kind"] == "eager"
        # A checkpoint also holds what training needs: its weights are counted as the baselines' are.
        size = 4 * info["parameters"] if eager else info["file_bytes"]
        about = {
            "system": OURS if steps else AUTOREGRESSIVE,
            "runtime": info["kind"],
            "precision": info["precision"],
        }
        about |= {"params": info["parameters"], "file_mb": size, "resolution": info["image_size"], "beams": ""}
        about |= {"steps": steps or "", "weights": "random" if RANDOM_NAME in str(info["name"]) else "trained"}
        caption = captioner.caption
    about["file_mb"] = round(about["file_mb"] / 1e6, 2)
    return caption, about | {"threads": threads}


def peak_mb(spec: Spec, image: str, threads: int) -> float:
    """Measure the high-water mark of this process's resident memory after loading a system and captioning twice.

    Returns:
        Megabytes (1e6 bytes), everything that is imported included; NaN where the system does not tell.
    """
    caption, _ = build(spec, threads)
    for _ in range(2):
        caption(image)
    try:
        with open("/proc/self/status") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        return float("nan")
    return kilobytes * 1024 / 1e6


def our_specs(paths: Sequence[str], steps: Sequence[int]) -> list[Spec]:
    """Name our systems: an export's folder stands for all of its files, a run's for its best checkpoint.

    Raises:
        UserError: If there is no such file.
    """
    from fastcap.pretrained import find_model

    specs = []
    for given in paths:
        files = sorted(Path(given).glob("*.onnx")) or [find_model(given)]
        for file in files:
            if not file.is_file():
                raise UserError(f"--models {given}: no such model")
            specs += [Spec(path=str(file), num_steps=count) for count in steps or (None,)]
    return specs


def baseline_specs(names: Sequence[str], beams: Sequence[int], num_tokens: int) -> list[Spec]:
    """Name baselines, each at its own image size, with each number of beams.

    Raises:
        UserError: If a name is unknown.
    """
    from fastcap.tools.baselines import architecture

    return [
        Spec(baseline=name, size=architecture(name).size, num_beams=count, num_tokens=num_tokens)
        for name in names
        for count in beams
    ]
