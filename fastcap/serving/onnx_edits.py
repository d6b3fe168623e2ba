"""Edits of ONNX graphs that need no arithmetic of their own."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.onnx_model import open_onnx


def drop_outputs(model: Any, names: Sequence[str]) -> None:
    """Take outputs, and what only they need, out of a graph."""
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    needed, nodes = {output.name for output in kept}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def look_up(graph: Any) -> None:
    """Put the ids that ``fastcap.generation.ngrams.find`` looks up where ONNX's hash tables have them, traced graph."""
    import onnx_ir as ir

    for node in graph:
        if node.op_type == "LabelEncoder":
            ids = node.inputs[1].const_value.numpy().tolist()
            node.resize_inputs(1)
            node.attributes.add(ir.AttrInt64s("keys_int64s", ids))
            node.attributes.add(ir.AttrInt64s("values_int64s", range(len(ids))))
            node.attributes.add(ir.AttrInt64("default_int64", -1))


def fuse_biases(path: Path) -> None:
    """Let ONNX Runtime's integer products of a file add the biases that follow them, which its optimiser leaves."""
    import onnx

    model = onnx.load(path)
    vectors = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1}
    products = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "MatMulIntegerToFloat" and len(node.input) < 7  # the seventh is a bias
    }
    read = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        made, bias = (next((name for name in node.input if name in known), "") for known in (products, vectors))
        if node.op_type in ("Add", "BiasGelu") and made and bias and read[made] == 1:
            products[made].input.extend([*[""] * (6 - len(products[made].input)), bias])
            node.op_type, node.input[:] = "Identity" if node.op_type == "Add" else "Gelu", [made]
    onnx.save(model, path)


def read_bytes(model: Any, scratch: Path) -> None:
    """Let the first layer read an image's bytes where its quantised input is these bytes anyway.

    Pixels that are normalized as (x - 127) / 128 and then quantised over all their range come out as they went in: a
    tenth of the time from pixels to caption.

    Args:
        model: Quantised, in QDQ form; its input is uint8, channels last. Changed in place.
        scratch: A file to write to.
    """
    import onnx

    pixels = model.graph.input[0]
    rounded = next((node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"), None)
    shape = [dim.dim_value for dim in pixels.type.tensor_type.shape.dim]
    if rounded is None or pixels.type.tensor_type.elem_type != onnx.TensorProto.UINT8 or len(shape) != 4:
        return
    part = copy.deepcopy(model)
    del part.graph.output[:]
    part.graph.output.append(onnx.helper.make_tensor_value_info(rounded, onnx.TensorProto.UINT8, None))
    drop_outputs(part, ())
    onnx.save(part, scratch)
    image = np.resize(np.arange(256, dtype=np.uint8).repeat(3), (1, *shape[1:]))  # every value in every channel
    (found,) = open_onnx(scratch, 1).run(None, {pixels.name: image})
    if not np.array_equal(found, image.transpose(0, 3, 1, 2)):
        return
    for node in model.graph.node:
        node.input[:] = ["image_bytes" if name == rounded else name for name in node.input]
    model.graph.node.insert(
        0, onnx.helper.make_node("Transpose", [pixels.name], ["image_bytes"], "image_bytes", perm=[0, 3, 1, 2])
    )
    drop_outputs(model, ())
