"""A quantised ONNX graph in exact integer arithmetic: pairs of products in 16 bits that saturate, or in 32."""

import numpy as np
import onnx


def evaluate(model, feeds, pair_bits=32):
    """Run a graph of (De)QuantizeLinear, Conv, MatMul, Gather and Cast nodes.

    What stands between a DequantizeLinear of u8 and one of s8 is computed on integers, as ONNX Runtime fuses it.

    Args:
        model: The graph.
        feeds: Input values by name.
        pair_bits: 16 where neighbouring products are added as x86's vpmaddubsw does it, else 32.

    Returns:
        Output values by name.
    """
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | feeds
    made_by = {}
    for node in model.graph.node:
        given = [values[name] if name else None for name in node.input]
        made_by[node.output[0]] = node
        sources = [made_by.get(name) for name in node.input]
        match node.op_type:
            case "QuantizeLinear":
                scale, zero = given[1], given[2]
                out = np.clip(np.rint(given[0] / scale) + zero, *((0, 255) if zero.dtype == np.uint8 else (-128, 127)))
                out = out.astype(zero.dtype)
            case "DequantizeLinear":
                axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                out = (given[0].astype(np.int64) - _along(given[2], given[0], axis)) * _along(given[1], given[0], axis)
                out = out.astype(np.float32)
            case "Conv" | "MatMul" if all(source and source.op_type == "DequantizeLinear" for source in sources[:2]):
                (x, x_scale, x_zero), (w, w_scale, _) = ([values[name] for name in s.input] for s in sources[:2])
                assert x.dtype == np.uint8 and w.dtype == np.int8
                rows, columns, shape = _as_product(node, x, w, int(x_zero))
                out = multiply(rows, columns, pair_bits) - int(x_zero) * columns.sum(0)
                out = (out * (x_scale.astype(np.float64) * w_scale)).reshape(shape)
                out = np.moveaxis(out, -1, 1) if node.op_type == "Conv" else out
                if len(given) > 2:
                    out = out + given[2][:, None, None]
                out = out.astype(np.float32)
            case "Gather":
                out = given[0][given[1]]
            case "Cast":
                out = given[0].astype(onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i))
            case other:
                raise NotImplementedError(other)
        values[node.output[0]] = out
    return {output.name: values[output.name] for output in model.graph.output}


def _along(values, tensor, axis):
    """Reshape one value a channel, so that it goes along an axis."""
    return values if values.ndim == 0 else values.reshape([-1 if k == axis else 1 for k in range(tensor.ndim)])


def _as_product(node, x, w, zero):
    """A convolution (padding 1, stride 1) or a product as one product of matrices: (rows, columns, shape to give)."""
    if node.op_type == "MatMul":
        return x.reshape(-1, x.shape[-1]), w, (*x.shape[:-1], w.shape[1])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zero)
    patches = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))  # (B, C, H, W, kh, kw)
    patches = patches.transpose(0, 2, 3, 4, 5, 1)
    columns = w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0])
    return patches.reshape(-1, len(columns)), columns, (*patches.shape[:3], w.shape[0])


def multiply(rows, columns, pair_bits):
    """Multiply u8 by s8 and add up: neighbours first, in so many bits, then their sums in more."""
    products = rows.astype(np.int64)[:, :, None] * columns.astype(np.int64)
    pairs = products[:, ::2] + products[:, 1::2]
    if pair_bits == 16:
        pairs = pairs.clip(-(2**15), 2**15 - 1)
    return pairs.sum(1)
