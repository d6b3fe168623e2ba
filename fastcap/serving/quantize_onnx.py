"""int8 in ONNX Runtime's way: static, QDQ, a scale an output channel; what would cost too much stays in fp32.

Rounding errors of different layers are nearly independent, so their powers add up. Each layer is therefore quantised
alone once, and the error that reaches the graph's outputs is measured. The noisiest layers stay in fp32 until what is
expected of all others together is quiet enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.runtimes import open_onnx

TARGET_DB = 20.0  # signal to noise that a graph's outputs are to keep: noise of a hundredth of the signal's power
MAX_JUDGED = 16  # feeds that one layer's error is measured on
ABSORBED = ("Clip", "Relu")  # a quantised convolution does these by where its range ends
CHOICES = ("experts", "words")  # outputs that are a choice among few: right or wrong, not more or less


@dataclass
class Layer:
    """A layer with weights of its own.

    Attributes:
        name: Name of its weights, or of its node where those have none.
        nodes: Its node, and the activation that it absorbs, if any.
        noise: Power of the error at the graph's outputs when it alone is quantised, as a share of the signal's.
        kept: It stays in fp32.
    """

    name: str
    nodes: list[str]
    noise: float = 0.0
    kept: bool = False

    @property
    def decibels(self) -> float:
        """Signal to noise when it alone is quantised."""
        return _decibels(self.noise)


class _Reader:
    """Feeds as ONNX Runtime's calibration reads them."""

    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed, None after the last."""
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._feeds


def quantize_onnx(
    source: Path, target: Path, feeds: Sequence[dict[str, np.ndarray]], target_db: float = TARGET_DB
) -> list[Layer]:
    """Quantise an ONNX graph to int8.

    Args:
        source: The graph in fp32.
        target: The file to write.
        feeds: What the graph was fed on training images; ranges and errors are measured on it.
        target_db: Signal to noise that the graph's outputs are to keep, as far as the layers' errors add up.

    Returns:
        The graph's layers, and which of them stay in fp32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, scratch = target.with_suffix(".prepared.onnx"), target.with_suffix(".scratch.onnx")
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        found = layers(model)
        types = ["Conv", "MatMul", "Gemm", *ABSORBED]
        calibrator = create_calibrator(
            prepared, types, augmented_model_path=str(scratch), calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(_Reader(feeds))
        ranges = calibrator.compute_data()
        del calibrator
        judged = feeds[:: math.ceil(len(feeds) / MAX_JUDGED)]
        truth = _outputs(prepared, judged)
        for layer in found:
            onnx.save(_quantized(model, ranges, [layer]), scratch)
            layer.noise = noise(truth, _outputs(scratch, judged))
        keep_noisiest(found, target_db)
        onnx.save(_quantized(model, ranges, [layer for layer in found if not layer.kept]), target)
    finally:
        prepared.unlink(missing_ok=True)
        scratch.unlink(missing_ok=True)
    return found


def layers(model: Any) -> list[Layer]:
    """List a graph's layers: convolutions, and matrix products with weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        own = [name for name in node.input[:2] if name in weights]
        if node.op_type in ("Conv", "MatMul", "Gemm") and own:
            follows = readers.get(node.output[0], [])
            absorbed = [n.name for n in follows if n.op_type in ABSORBED] if node.op_type == "Conv" else []
            named = own[0].startswith("model.") and own[0].endswith(".weight")
            name = own[0].removeprefix("model.").removesuffix(".weight") if named else node.name
            found.append(Layer(name, [node.name, *(absorbed if len(follows) == 1 else [])]))
    return found


def keep_noisiest(found: Sequence[Layer], target_db: float) -> None:
    """Keep the noisiest layers in fp32, until the noise of the others adds up to no more than the target."""
    most = 10 ** (-target_db / 10)
    left = sum(layer.noise for layer in found)
    for layer in sorted(found, key=lambda layer: -layer.noise):
        if left <= most:
            break
        layer.kept = True
        left = sum(other.noise for other in found if not other.kept)


def noise(truth: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Power of the error as a share of the signal's, of the noisiest of several outputs."""
    shares = [0.0]
    for signal, output in zip(truth, outputs, strict=True):
        power = float(np.square(signal, dtype=np.float64).sum())
        if power > 0:
            shares.append(float(np.square(output - signal, dtype=np.float64).sum()) / power)
    return max(shares)


def summary(graphs: dict[str, list[Layer]]) -> dict[str, Any]:
    """Say what each graph keeps in fp32, for the report."""
    return {
        graph: {
            "layers": len(found),
            "expected_signal_to_noise_db": _rounded(sum(layer.noise for layer in found if not layer.kept)),
            "kept_in_fp32": {layer.name: _rounded(layer.noise) for layer in found if layer.kept},
        }
        for graph, found in graphs.items()
    }


def _decibels(share: float) -> float:
    return -10 * math.log10(share) if share > 0 else math.inf


def _rounded(share: float) -> float | None:
    return round(_decibels(share), 1) if share > 0 else None


def _outputs(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Run a graph on each feed; an array an output that is a quantity, of all feeds one after the other."""
    session = open_onnx(path, 1)
    names = [output.name for output in session.get_outputs() if output.name not in CHOICES]
    runs = [session.run(names, feed) for feed in feeds]
    return [np.concatenate([run[place].ravel() for run in runs]) for place in range(len(names))]


def _quantized(model: Any, ranges: Any, chosen: Sequence[Layer]) -> Any:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    if not chosen:
        return model
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        True,  # a scale an output channel
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges,
        [node for layer in chosen for node in layer.nodes],
        [],
        ["Conv", "MatMul", "Gemm", *ABSORBED],
        # What follows a matrix product is fp32 anyway: rounding its result would only lose accuracy.
        {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    quantizer.quantize_model()
    return quantizer.model.model
