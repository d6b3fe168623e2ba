"""Edits of ONNX graphs that need no arithmetic of their own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.onnx_model import open_onnx

MIN_WEIGHTS = 4096  # smaller matrices and tables are as they were: there is nothing to gain


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


def store_tables_in_16_bits(model: Any) -> None:
    """Store large fp32 constants in fp16; ONNX Runtime widens them once, when it opens the graph."""
    import onnx

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= MIN_WEIGHTS:
            values, name = onnx.numpy_helper.to_array(tensor), tensor.name
            if np.abs(values).max() <= np.finfo(np.float16).max:
                casts.append(onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], f"{name}_widen", to=1))
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
