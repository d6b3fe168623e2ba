"""Captioning systems side by side, each from an image file to text: ours, its exports, its twin, and the peers.

Imports are inside the functions: a process that measures an export's memory must not hold torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OURS, TWIN = "fastcap", "fastcap-autoregressive"
RANDOM_NAME = "random-weights"  # the `name` in the configuration of a checkpoint that nobody trained


class Captions(Protocol):
    """What writes captions."""

    def caption(self, image: Any, /) -> Any:
        """Caption an image file."""


@dataclass(frozen=True)
class Spec:
    """How to build a system, in this process or another.

    Attributes:
        peer: A name of ``fastcap.tools.peers``, or empty for one of ours.
        path: Checkpoint or export folder of ours.
        size: Side of a peer's images, in pixels.
        num_beams: Beams of what writes word after word; 1 is greedy.
        num_steps: Refinement steps, or None for the model's own.
        compiled: Run through ``torch.compile``.
        num_tokens: New tokens of a peer's caption.
    """

    peer: str = ""
    path: str = ""
    size: int = 224
    num_beams: int | None = None
    num_steps: int | None = None
    compiled: bool = False
    num_tokens: int = 12

    @property
    def label(self) -> str:
        """Say what it is in progress lines and errors."""
        name = f"{self.peer} {self.size} px" if self.peer else self.path
        return name + f", {self.num_beams} beams" * bool(self.num_beams) + ", compiled" * self.compiled


class _WithSteps:
    def __init__(self, captioner: Any, num_steps: int | None) -> None:
        self._captioner, self._num_steps = captioner, num_steps

    def caption(self, image: Any) -> str:
        return self._captioner.caption(image, num_steps=self._num_steps).text


def build(spec: Spec, threads: int) -> tuple[Captions, dict[str, Any]]:
    """Build a system.

    Returns:
        What captions, and its row of the table as far as it is known without measuring.

    Raises:
        ConfigError: If a package is missing or a name is unknown.
        CheckpointError: If the file or folder cannot be used.
    """
    return _build_peer(spec, threads) if spec.peer else _build_ours(spec, threads)


def _build_peer(spec: Spec, threads: int) -> tuple[Captions, dict[str, Any]]:
    import torch

    from fastcap.tools.peers import Peer

    torch.set_num_threads(threads)
    peer = Peer(spec.peer, spec.size, spec.num_beams or 1, spec.num_tokens)
    return peer, _row(
        system=spec.peer,
        runtime="eager",
        precision="fp32",
        params=peer.parameters,
        file_bytes=peer.file_bytes,
        resolution=spec.size,
        threads=threads,
        beams=spec.num_beams or 1,
        steps=spec.num_tokens,
        weights="random",
    )


def _build_ours(spec: Spec, threads: int) -> tuple[Captions, dict[str, Any]]:
    from fastcap.serving.captioner import Captioner

    captioner: Any = Captioner.load(spec.path, num_threads=threads)
    if spec.num_beams is not None or spec.compiled:
        captioner = _eager(spec, threads)
    info = captioner.info
    runtime, causal = str(info["kind"]), info["num_steps"] is None
    file_bytes = int(info["file_bytes"])
    if info["kind"] == "eager":
        # A checkpoint also holds what training needs: weights are counted as the peers' are.
        file_bytes = 4 * int(info["parameters"])
    if spec.compiled:
        runtime = "torch.compile"
    return _WithSteps(captioner, spec.num_steps), _row(
        system=TWIN if causal else OURS,
        runtime=runtime,
        precision=str(info["precision"]),
        params=int(info["parameters"]),
        file_bytes=file_bytes,
        resolution=int(info["image_size"]),
        threads=threads,
        beams=(spec.num_beams or 1) if causal else "",
        steps="" if causal else spec.num_steps or info["num_steps"],
        weights="random" if RANDOM_NAME in str(info["name"]) else "trained",
    )


def _eager(spec: Spec, threads: int) -> Any:
    """Load a checkpoint with a number of beams, or with its backbone and its decoder pass compiled.

    Raises:
        ConfigError: If the system is none that ``torch.compile`` can take: an export.
    """
    import torch
    from torch import nn

    from fastcap.build import ConfigError, load_checkpoint
    from fastcap.serving.captioner import Captioner
    from fastcap.serving.eager import EagerNetwork
    from fastcap.utils.prepacking import PACKABLE

    if Path(spec.path).suffix == ".onnx":
        raise ConfigError(f"{spec.path}: torch.compile takes a checkpoint, this is an export")
    torch.set_num_threads(threads)
    beams = {} if spec.num_beams is None else {"refinement.num_beams": spec.num_beams}
    network = EagerNetwork(load_checkpoint(spec.path, beams), [nn.Conv2d] if spec.compiled else PACKABLE)
    if not spec.compiled:
        return Captioner(network)
    model = network.model
    model.backbone.compile()
    if not model.decoder.causal:
        model.decoder.denoise = torch.compile(model.decoder.denoise, dynamic=True)
    return Captioner(network)


def _row(file_bytes: int, **known: Any) -> dict[str, Any]:
    row = {**known, "file_mb": round(file_bytes / 1e6, 2)}
    order = ("system", "runtime", "precision", "params", "file_mb")
    return {key: row[key] for key in (*order, *(key for key in row if key not in order))}


def peer_specs(names: Sequence[str], beams: Sequence[int], size: int, num_tokens: int = 12) -> list[Spec]:
    """Every peer at the common image size where it takes it, and at its own, with each number of beams.

    Raises:
        ConfigError: If a name is unknown.
    """
    from fastcap.tools.peers import architecture

    specs = []
    for name in names:
        known = architecture(name)
        for side in dict.fromkeys((size, known.size) if known.any_size else (known.size,)):
            specs += [Spec(peer=name, size=side, num_beams=count, num_tokens=num_tokens) for count in beams]
    return specs


def our_specs(paths: Sequence[str], beams: Sequence[int], steps: Sequence[int], compiled: bool) -> list[Spec]:
    """Specs of checkpoints and exports; a checkpoint also through ``torch.compile``, the twin with each beam width.

    An export's folder stands for all of its files.

    Raises:
        CheckpointError: If a file cannot be used.
        ModelFileError: If an exported model cannot be used.
    """
    from fastcap.serving.captioner import Captioner

    specs = []
    for path in (variant for given in paths for variant in _variants(Path(given))):
        causal = Captioner.load(path).info["num_steps"] is None
        if causal:
            specs += [Spec(path=path, num_beams=count) for count in beams]
            continue
        for count in steps or (None,):
            specs.append(Spec(path=path, num_steps=count))
            if compiled and not path.endswith(".onnx"):
                specs.append(Spec(path=path, num_steps=count, compiled=True))
    return specs


def _variants(path: Path) -> list[str]:
    return sorted(map(str, path.glob("*.onnx"))) or [str(path)]
