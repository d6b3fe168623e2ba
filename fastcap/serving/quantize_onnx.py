"""int8 in ONNX Runtime's way: static, QDQ, a scale an output channel; right on every CPU.

Without VNNI, x86 kernels add the products of two u8 activations and two s8 weights in 16 bits and saturate. Weights of
7 bits cannot reach that: 2 * 255 * 64 = 32,640 < 2**15. Activations keep 8 bits.

Rounding a convolution's weights also moves its mean output; its bias takes that back (Nagel et al. 2019, Data-Free
Quantization through Weight Equalization and Bias Correction), as measured on training images.

Rounding errors of different layers are nearly independent, so their powers add up. All layers are quantised first;
where that is too noisy, the layers at fault are found by halving, and stay in fp32.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.onnx_edits import drop_outputs, read_bytes
from fastcap.serving.onnx_model import open_onnx

TARGET_DB = 17.0  # signal to noise that probes are to keep; activations of 8 bits alone make 19 on photographs
MAX_MEASURED = 16  # feeds that errors are measured on
MIN_WEIGHTS = 4096  # smaller matrices are as they were: there is nothing to gain
MAX_WEIGHT = 64  # of a quantised weight: 7 bits
ABSORBED = ("Clip", "Relu")  # a quantised convolution does these by where its range ends
KINDS = ("Conv", "MatMul", "Gemm")


def quantize_onnx(
    source: Path,
    target: Path,
    feeds: Sequence[dict[str, np.ndarray]],
    probes: Sequence[str] = (),
    target_db: float = TARGET_DB,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Quantise an ONNX graph to int8.

    Args:
        source: The graph in fp32.
        target: The file to write.
        feeds: What the graph is fed on training images, one image each; ranges and errors are measured on it.
        probes: Outputs that are quantities, not choices among few, and depend on every layer. Errors are measured on
            them, and they are left out of the written graph. Without probes all outputs are measured, and all stay.
        target_db: Signal to noise that the probes are to keep; the signal is what differs from image to image.
        say: Told what is being done.

    Returns:
        How many ``layers`` there are, the ``signal_to_noise_db`` that was reached, and which are ``kept_in_fp32``, with
        the signal to noise that each had alone.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared, scratch = Path(folder, "prepared.onnx"), Path(folder, "scratch.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        _separate_tables(model)
        onnx.save(model, prepared)
        say(f"ranges of {len(feeds)} images")
        ranges = _ranges(prepared, scratch, feeds)
        few = feeds[:: math.ceil(len(feeds) / MAX_MEASURED)]
        means = _mean_inputs(model, scratch, few)
        measured = list(probes) or [output.name for output in model.graph.output]
        part = onnx.utils.Extractor(model).extract_model([i.name for i in model.graph.input], measured)
        onnx.save(part, scratch)
        truth = _outputs(scratch, few)

        def measure(chosen: Sequence[str]) -> float:
            onnx.save(_quantized(part, ranges, means, {name: found[name] for name in chosen}), scratch)
            return noise(truth, _outputs(scratch, few))

        reached = layers(part)
        found = {name: nodes for name, nodes in layers(model).items() if name in reached}
        kept, left = keep_noisiest(list(found), measure, 10 ** (-target_db / 10), say)
        drop_outputs(model, probes)
        result = _quantized(model, ranges, means, {name: found[name] for name in found if name not in kept})
        read_bytes(result, scratch)
        onnx.save(result, target)
    shares = {name: _decibels(share) for name, share in kept.items()}
    return {"layers": len(found), "signal_to_noise_db": _decibels(left), "kept_in_fp32": shares}


def layers(model: Any) -> dict[str, list[str]]:
    """List a graph's layers, convolutions and products with matrices that are worth it, by the name of their weights.

    Each has the nodes that multiply by them (one a refinement step, where steps share weights) and the activations that
    these absorb.
    """
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    readers = _readers(model)
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        name = next((name for name in node.input[:2] if name in sizes), None)
        if node.op_type not in KINDS or name is None:
            continue
        convolution = node.op_type == "Conv"
        if not convolution and (len(sizes[name]) != 2 or math.prod(sizes[name]) < MIN_WEIGHTS):
            continue
        follows = readers.get(node.output[0], [])
        absorbed = [n.name for n in follows if convolution and len(follows) == 1 and n.op_type in ABSORBED]
        found.setdefault(name, []).extend([node.name, *absorbed])
    return found


def keep_noisiest(
    names: Sequence[str], measure: Callable[[Sequence[str]], float], most: float, say: Callable[[str], None]
) -> tuple[dict[str, float], float]:
    """Keep the noisiest layers in fp32, until the others together are no noisier than allowed.

    Args:
        names: The layers.
        measure: Quantises some layers and returns the noise at the outputs.
        most: Noise allowed.
        say: Told of each step.

    Returns:
        The noise of each layer that is kept, and that of the others together: shares of the signal's power.
    """
    kept: dict[str, float] = {}
    groups = [(measure(names), names)] if names else []
    left = sum(share for share, _ in groups)
    while left > most:
        groups.sort(key=lambda group: group[0])
        share, group = groups.pop()
        if len(group) == 1:
            kept[group[0]] = share
        else:
            half = len(group) // 2
            groups += [(measure(part), part) for part in (group[:half], group[half:])]
        left = sum(share for share, _ in groups)
        if left <= most:  # as far as noises add up; what counts is all of it
            left = measure([name for _, group in groups for name in group]) if groups else 0.0
        say(f"{_decibels(left)} dB with {len(kept)} of {len(names)} layers in fp32")
    return kept, left


def noise(truth: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Power of the error as a share of the signal's, of the noisiest output.

    The signal is what differs from feed to feed: a word's logit is mostly how frequent the word is, whatever the image.

    Args:
        truth: Of each output, all feeds. (feeds, ...)
        outputs: What to compare with it.
    """
    shares = [0.0]
    for exact, output in zip(truth, outputs, strict=True):
        power = float(np.square(exact - exact.mean(0), dtype=np.float64).sum())
        if power > 0:
            shares.append(float(np.square(output - exact, dtype=np.float64).sum()) / power)
    return max(shares)


def _ranges(graph: Path, scratch: Path, feeds: Sequence[dict[str, np.ndarray]]) -> Any:
    """Smallest and largest value of what layers take and give."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):
        waiting = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.waiting, None)

    calibrator = create_calibrator(
        graph, [*KINDS, *ABSORBED], augmented_model_path=str(scratch), calibrate_method=CalibrationMethod.MinMax
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _mean_inputs(model: Any, scratch: Path, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean of each channel that a convolution takes, by the name of its weights."""
    import onnx

    convolutions = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    if not convolutions:
        return {}
    model = copy.deepcopy(model)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 2, 3], np.int64), "all_but_channels"))
    del model.graph.output[:]
    for weights, name in convolutions.items():
        output = f"{weights}_mean_input"
        model.graph.node.append(onnx.helper.make_node("ReduceMean", [name, "all_but_channels"], [output], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    onnx.save(model, scratch)
    session = open_onnx(scratch, 1)
    runs = [session.run(None, feed) for feed in feeds]
    return {weights: np.mean([run[place] for run in runs], axis=0) for place, weights in enumerate(convolutions)}


def _correct_biases(model: Any, means: dict[str, np.ndarray], chosen: set[str]) -> None:
    """Take what rounding a convolution's weights adds to its mean output off its bias."""
    import onnx

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in chosen or len(node.input) < 3:
            continue
        weights = onnx.numpy_helper.to_array(tensors[node.input[1]])
        axes = tuple(range(1, weights.ndim))
        scale = np.maximum(np.abs(weights).max(axes, keepdims=True) / MAX_WEIGHT, np.finfo(np.float32).tiny)
        added = (np.rint(weights / scale) * scale - weights).sum(axes[1:])  # (out, in of one group)
        inputs = means[node.input[1]].reshape(-1, added.shape[1])  # (groups, in of one group)
        shift = (added * inputs.repeat(len(added) // len(inputs), axis=0)).sum(1)
        bias = tensors[node.input[2]]
        corrected = onnx.numpy_helper.to_array(bias) - shift
        bias.CopyFrom(onnx.numpy_helper.from_array(corrected.astype(np.float32), bias.name))


def _readers(model: Any) -> dict[str, list[Any]]:
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _separate_tables(model: Any) -> None:
    """Give a table that is also a layer's weights (tied embeddings) a copy of its own: that one stays as it is."""
    readers = _readers(model)
    chosen = {name for nodes in layers(model).values() for name in nodes}
    for tensor in list(model.graph.initializer):
        multiply = [node for node in readers.get(tensor.name, []) if node.name in chosen]
        others = [node for node in readers.get(tensor.name, []) if node.name not in chosen]
        if multiply and others:
            table = copy.deepcopy(tensor)
            table.name = f"{tensor.name}_table"
            model.graph.initializer.append(table)
            for node in others:
                node.input[:] = [table.name if name == tensor.name else name for name in node.input]


def _outputs(path: Path, feeds: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """Run a graph on each feed; an array (feeds, ...) for each output of floats."""
    session = open_onnx(path, 1)
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]
    runs = [session.run(names, feed) for feed in feeds]
    return [np.stack([run[place] for run in runs]) for place in range(len(names))]


def _quantized(model: Any, ranges: Any, means: dict[str, np.ndarray], chosen: dict[str, list[str]]) -> Any:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = copy.deepcopy(model)
    if not chosen:
        return model
    _correct_biases(model, means, set(chosen))
    quantizer = QDQQuantizer(
        model,
        True,  # a scale an output channel
        True,  # weights of 7 bits, up to MAX_WEIGHT
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges,
        [node for nodes in chosen.values() for node in nodes],
        [],
        [*KINDS, *ABSORBED],
        # What follows a matrix product is fp32 anyway: rounding its result would only lose accuracy.
        {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    _shield(quantizer.model.model)
    return quantizer.model.model


def _shield(model: Any) -> None:
    """Keep ONNX Runtime from rounding what stays in fp32.

    Its WeightBiasQuantization rounds a convolution between two quantised ones by itself, all channels with one scale.
    A maximum with the lowest number between the two hides it, in every language.
    """
    import onnx

    made_by = {output: node for node in model.graph.node for output in node.output}

    def dequantized(name: str) -> bool:
        return name in made_by and made_by[name].op_type == "DequantizeLinear"

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in ("Conv", "Gemm") and dequantized(node.input[0]) and not dequantized(node.input[1]):
            output = node.output[0]
            node.output[0] = f"{output}_fp32"
            nodes.append(onnx.helper.make_node("Max", [node.output[0], "fp32_lowest"], [output], f"{node.name}_shield"))
    if len(nodes) > len(model.graph.node):
        lowest = np.array(np.finfo(np.float32).min, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(lowest, "fp32_lowest"))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _decibels(share: float) -> float | None:
    return round(-10 * math.log10(share), 1) if share > 0 else None
