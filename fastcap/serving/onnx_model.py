"""An exported model: one ONNX file from pixels to token ids, run by ONNX Runtime without torch.

The file's metadata (``fastcap.*``) says all that is needed around the graph: vocabulary, size of the images, operating
point, name, licence. ``fastcap.serving.export`` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.types import Refinement, StepTensors
from fastcap.utils.errors import UserError

FORMAT_VERSION = 1
PREFIX = "fastcap."
INPUT = "pixels"
# What a caption is made of, and what tells how it came about.
CAPTION_OUTPUTS = ("tokens", "lengths", "confidence")
STEP_OUTPUTS = ("draft_tokens", "draft_confidence", "draft_remasked", "draft_lengths", "expert_weights")


class ModelFileError(UserError, ValueError):
    """A model file that cannot be used; the message says which, why, and what to do."""


def spell(pieces: Sequence[str], tokens: Sequence[int]) -> str:
    """Spell token ids out, given what each stands for: nothing for special tokens."""
    return " ".join(filter(None, (pieces[token] for token in tokens)))


class OnnxNetwork:
    """An exported model behind the ``Network`` protocol.

    Args:
        path: The ``.onnx`` file.
        num_threads: Threads; None leaves it to ONNX Runtime.
        length_beam: Must be the model's own, if given: an exported model has it fixed.

    Raises:
        ModelFileError: If the file is missing, corrupt, no FastCap model or of another version.
        ValueError: If the length beam is another one.
    """

    def __init__(self, path: Path, num_threads: int | None = None, length_beam: int | None = None) -> None:
        self._session = open_onnx(path, num_threads)
        about = self._session.get_modelmeta().custom_metadata_map
        try:
            found = int(about[f"{PREFIX}format_version"])
            if found != FORMAT_VERSION:
                raise ModelFileError(
                    f"{path}: its format is version {found}, this FastCap reads {FORMAT_VERSION}; export its "
                    "checkpoint again (fastcap export)"
                )
            self.image_size = int(about[f"{PREFIX}image_size"])
            point = json.loads(about[f"{PREFIX}operating_point"])
            self.num_steps: int | None = int(point["num_steps"])
            self.length_beam = int(point["length_beam"])
            self._pieces: list[str] = json.loads(about[f"{PREFIX}vocabulary"])["pieces"]
            parameters = int(about[f"{PREFIX}parameters"])
        except ModelFileError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: not a model that `fastcap export` wrote (metadata: {error})") from error
        if length_beam not in (None, self.length_beam):
            raise ModelFileError(_fixed("length_beam", length_beam, self.length_beam))
        self.info: dict[str, Any] = {
            "kind": "onnx",
            "precision": about.get(f"{PREFIX}precision", ""),
            "parameters": parameters,
            "file_bytes": path.stat().st_size,
            "name": about.get(f"{PREFIX}name", path.stem),
        }

    def run(self, pixels: np.ndarray, num_steps: int | None, record_steps: bool) -> Refinement:
        """Caption images, as ``Network.run``; another number of steps than the exported one is refused."""
        if num_steps not in (None, self.num_steps):
            raise ModelFileError(_fixed("num_steps", num_steps, self.num_steps))
        tokens, lengths, confidence, drafts, sure, remasked, drafted, experts = self._session.run(
            [*CAPTION_OUTPUTS, *STEP_OUTPUTS], {INPUT: pixels}
        )
        steps = range(drafts.shape[1]) if record_steps else ()
        return Refinement(
            tokens,
            lengths,
            np.log(confidence),
            drafted,
            [StepTensors(drafts[:, step], sure[:, step], remasked[:, step]) for step in steps],
            experts,
        )

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""
        return spell(self._pieces, tokens)


def _fixed(name: str, asked: int | None, own: int | None) -> str:
    option = name.replace("_", "-")
    return f"{name} = {asked}: this model was exported with {own}; export its checkpoint again with --{option} {asked}"


def open_onnx(path: Path, num_threads: int | None = None, optimized: Path | None = None, level: str = "ALL") -> Any:
    """Open a graph with ONNX Runtime, as an ``InferenceSession``.

    Args:
        path: The file.
        num_threads: Threads; None leaves it to ONNX Runtime.
        optimized: Where to store the graph as the optimiser leaves it, if anywhere.
        level: ONNX Runtime's level of optimisation; what BASIC and EXTENDED leave runs on any CPU.

    Raises:
        ModelFileError: If the file is corrupt, ``optimized`` cannot be written, or ONNX Runtime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # nothing is sent, no device id is kept in the home folder
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelFileError(f"{path}: needs ONNX Runtime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = num_threads or 0
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    # ONNX Runtime's kernel of a sum and its layer norm as one takes four times as long as the two.
    providers, disabled = ["CPUExecutionProvider"], ["SkipLayerNormFusion"]
    try:
        return onnxruntime.InferenceSession(path, options, providers, disabled_optimizers=disabled)
    except Exception as error:  # ONNX Runtime raises kinds of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if optimized is not None:
            raise ModelFileError(f"{optimized}: cannot be written; is the disk full? ({reason[:200]})") from error
        raise ModelFileError(
            f"{path}: damaged or no ONNX model ({reason[:200]}); copy it again, or export its checkpoint again"
        ) from error
