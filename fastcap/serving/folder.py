"""An exported model on disk: a folder of graphs, a tokenizer and plain JSON, nothing that could hold code.

    EXPORT/export.json          the variants, and which one to take
    EXPORT/VARIANT/model.json   what the graphs are and how to refine
    EXPORT/VARIANT/tokenizer.json
    EXPORT/VARIANT/bigrams.npz  what neighbouring words are worth, two and three in a row
    EXPORT/VARIANT/weights.bin  weights of all its graphs
    EXPORT/VARIANT/encoder.*    pixels -> image memory, length logits, expert weights, image embedding
    EXPORT/VARIANT/prepare_G.*  memory -> what decoding keeps of an image, for the experts of group G
    EXPORT/VARIANT/step_G.*     one refinement step, run as often as wanted

VARIANT is RUNTIME-PRECISION, such as onnx-int8, and a model by itself: it may be copied elsewhere alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcap.serving.refine import RefinementSettings
from fastcap.types import SpecialTokens
from fastcap.utils.errors import UserError

FORMAT_VERSION = 6  # raised when a folder comes to mean something else
INDEX, MODEL, TOKENIZER, WEIGHTS = "export.json", "model.json", "tokenizer.json", "weights.bin"
BIGRAMS = "bigrams.npz"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
PRECISIONS = ("fp32", "bf16", "int8")


class ExportError(UserError, ValueError):
    """An exported model that cannot be used; the message names the file and what is wrong."""


@dataclass
class ModelFacts:
    """What ``model.json`` says.

    Attributes:
        name: Name of the run that trained it.
        runtime: ``onnx`` or ``openvino``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        image_size: Side of its images, in pixels; they are squashed to a square without cropping.
        parameters: Parameters of the network.
        special: Special token ids by name.
        refinement: Keys of ``RefinementSettings``.
        groups: Expert groups; an image goes to the group of its heaviest expert. Each group has its own graphs.
        config: The configuration of the run, as plain data.
    """

    name: str
    runtime: str
    precision: str
    image_size: int
    parameters: int
    special: dict[str, int]
    refinement: dict[str, Any]
    groups: list[list[int]]
    config: dict[str, Any]

    @property
    def settings(self) -> RefinementSettings:
        """How to refine. Raises ``ValueError`` if a value is refused."""
        return RefinementSettings().changed(self.refinement)

    @property
    def special_tokens(self) -> SpecialTokens:
        """The special token ids."""
        return SpecialTokens(**self.special)

    @property
    def graphs(self) -> list[str]:
        """Names of all graphs."""
        return [
            "encoder",
            *(f"{kind}_{group}" for group in range(len(self.groups)) for kind in ("prepare", "step")),
        ]

    def write(self, folder: Path) -> None:
        """Write ``model.json``."""
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)
        (folder / MODEL).write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ExportError: If the file is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path}: must hold a JSON object")
    found = content.get("format_version")
    if found != FORMAT_VERSION:
        raise ExportError(f"{path}: field `format_version` is {found!r}, this version reads {FORMAT_VERSION}")
    return content


def variant_folder(path: Path) -> Path:
    """Find the variant that a path means: itself, or the one that an export's index prefers.

    Raises:
        ExportError: If it is neither a variant nor an export.
    """
    if (path / MODEL).is_file():
        return path
    if not (path / INDEX).is_file():
        raise ExportError(f"{path}: not an exported model (neither {INDEX} nor {MODEL} is there)")
    chosen = read_json(path / INDEX).get("default")
    if not isinstance(chosen, str) or Path(chosen).name != chosen or not (path / chosen / MODEL).is_file():
        raise ExportError(f"{path / INDEX}: field `default` names no variant beside it: {chosen!r}")
    return path / chosen


def read_model(folder: Path) -> ModelFacts:
    """Read ``model.json`` and make sure that all graphs are there.

    Raises:
        ExportError: If a file is missing or a field is wrong.
    """
    path = folder / MODEL
    content = read_json(path)
    content.pop("format_version")
    try:
        facts = ModelFacts(**content)
        suffix = SUFFIXES[facts.runtime]
        _ = facts.settings, facts.special_tokens, facts.graphs
        if facts.precision not in PRECISIONS or facts.image_size < 1:
            raise ValueError(f"precision {facts.precision!r}, image_size {facts.image_size!r}")
    except (TypeError, KeyError, ValueError) as error:
        raise ExportError(f"{path}: field missing, unknown or refused ({error})") from error
    for name in [*(f"{graph}{suffix}" for graph in facts.graphs), TOKENIZER, BIGRAMS, WEIGHTS]:
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name}: file of the exported model is missing")
    return facts


def folder_bytes(folder: Path) -> int:
    """Size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
