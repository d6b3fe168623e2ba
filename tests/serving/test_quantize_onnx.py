"""int8 through ONNX Runtime: exact on every CPU; which layers stay in fp32, and that they do."""

import numpy as np
import pytest

from fastcap.serving.onnx_edits import fuse_biases
from fastcap.serving.onnx_model import open_onnx
from fastcap.serving.quantize_onnx import MAX_WEIGHT, keep_noisiest, layers, noise, quantize_onnx
from tests.serving.integer_graph import evaluate, multiply

onnx = pytest.importorskip("onnx", reason="exporting needs the extra `train`")
onnxruntime = pytest.importorskip("onnxruntime")

CHANNELS = 8


def _graph(path, outlier=1.0, matrix=False):
    """Convolutions with a Clip each; the second weighs its first input, which is small, `outlier` times as much."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "images"
    for number in range(3):
        values = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 6
        if number == 0:
            values[0] /= outlier
        if number == 1:
            values[:, 0] *= outlier
        weights.append(onnx.numpy_helper.from_array(values, f"conv{number}.weight"))
        nodes += [
            onnx.helper.make_node("Conv", [last, weights[-1].name], [f"raw{number}"], f"conv{number}", pads=[1] * 4),
            onnx.helper.make_node("Clip", [f"raw{number}", "zero", "six"], [f"act{number}"], f"clip{number}"),
        ]
        last = f"act{number}"
    nodes[-1].output[0] = "memory"
    weights += [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in (("zero", 0), ("six", 6))]
    shape = [1, CHANNELS, 12, 12]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in ("images", "memory")
    )
    if matrix:  # its weights serve twice, as refinement steps share them, and are a table too
        weights.append(onnx.numpy_helper.from_array(rng.normal(size=(12, 400)).astype(np.float32), "vocabulary"))
        inputs.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.INT64, [2]))
        nodes.append(onnx.helper.make_node("MatMul", ["memory", "vocabulary"], ["logits"], "first"))
        nodes.append(onnx.helper.make_node("MatMul", ["act1", "vocabulary"], ["logits2"], "second"))
        nodes.append(onnx.helper.make_node("Gather", ["vocabulary", "words"], ["rows"], "embed"))
        shapes = {"logits2": [1, CHANNELS, 12, 400], "rows": [2, 400], "logits": [1, CHANNELS, 12, 400]}
        outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def _feeds(count=8, scale=1.0, matrix=False):
    rng = np.random.default_rng(1)
    images = [scale * rng.normal(size=(1, CHANNELS, 12, 12)).astype(np.float32) for _ in range(count)]
    return [{"images": image, **({"words": np.int64([3, 1])} if matrix else {})} for image in images]


def _run(path, feeds, **options):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"], **options)
    return np.stack([session.run(None, feed)[0] for feed in feeds])


def test_int8_is_exact_with_16_bit_pair_sums_too(tmp_path):
    """Weights of 7 bits: without VNNI, x86 adds pairs of u8 x s8 products in 16 bits that saturate."""
    feeds = _feeds(4, scale=20.0, matrix=True)
    source = _graph(tmp_path / "a.onnx", matrix=True)
    assert layers(onnx.load(source))["vocabulary"] == ["first", "second"]
    quantize_onnx(source, tmp_path / "b.onnx", feeds, ["logits"], -99.0)
    model = onnx.load(tmp_path / "b.onnx")
    weights = [onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.data_type == onnx.TensorProto.INT8]
    weights = [values.astype(int) for values in weights if values.ndim > 1]  # the last convolution served the probe
    assert len(weights) == 3 and all(np.abs(values).max() == MAX_WEIGHT for values in weights)
    assert 2 * 255 * MAX_WEIGHT < 2**15
    # Inputs that reach the largest activation everywhere come nearest to the limit.
    for feed in [*feeds, {**feeds[0], "images": np.full_like(feeds[0]["images"], 100.0)}]:
        exact, saturating = evaluate(model, feed), evaluate(model, feed, pair_bits=16)
        np.testing.assert_array_equal(exact["logits2"], saturating["logits2"])
        served = _run(tmp_path / "b.onnx", [feed])[0]
        np.testing.assert_allclose(served, exact["logits2"], rtol=1e-5, atol=1e-4)


def test_saturation_would_show():
    """The evaluator does what it is for: weights of 8 bits saturate."""
    rows, columns = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    assert multiply(rows, columns, 32) == 2 * 255 * 127 and multiply(rows, columns, 16) == 2**15 - 1


def test_tables_are_separated_and_stay_as_they_are(tmp_path):
    source, feeds = _graph(tmp_path / "a.onnx", matrix=True), _feeds(4, matrix=True)
    quantize_onnx(source, tmp_path / "b.onnx", feeds, ["logits"])
    model = onnx.load(tmp_path / "b.onnx")
    assert [output.name for output in model.graph.output] == ["logits2", "rows"]
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["vocabulary_table"] == onnx.TensorProto.FLOAT
    options = {"providers": ["CPUExecutionProvider"]}
    exact, stored = (onnxruntime.InferenceSession(tmp_path / name, **options) for name in ("a.onnx", "b.onnx"))
    np.testing.assert_array_equal(stored.run(["rows"], feeds[0]), exact.run(["rows"], feeds[0]))


def test_products_add_the_biases_that_follow_them(tmp_path):
    rng = np.random.default_rng(2)
    steps = "a = MatMul(x, w) b = Add(a, v) c = Gelu(b) d = MatMul(c, w) y = Add(v, d)"
    head = '<ir_version: 10, opset_import: ["": 20]> g (float[1, n, 128] x) => (float[1, n, 128] y)'
    model = onnx.parser.parse_model(f"{head} {{ {steps} }}")
    for name, shape in (("w", (128, 128)), ("v", (128,))):
        values = rng.normal(size=shape).astype(np.float32) / 8
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    source, int8, fast = (tmp_path / f"{name}.onnx" for name in ("source", "int8", "fast"))
    onnx.save(model, source)
    feeds = [{"x": rng.normal(size=(1, 1, 128)).astype(np.float32)} for _ in range(4)]
    quantize_onnx(source, int8, feeds)
    open_onnx(int8, optimized=fast, level="EXTENDED")
    before = _run(fast, feeds)
    fuse_biases(fast)
    kinds = [node.op_type for node in onnx.load(fast).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2 and not {"Add", "BiasGelu"}.intersection(kinds)
    np.testing.assert_allclose(_run(fast, feeds), before, rtol=1e-5, atol=1e-5)


def test_layers_at_fault_are_found_by_halving():
    powers = {"a": 1e-4, "b": 1e-2, "c": 1e-3, "d": 1e-1}
    calls = []

    def measure(chosen):
        calls.append(list(chosen))
        return sum(powers[name] for name in chosen)

    kept, left = keep_noisiest(list(powers), measure, 10**-2.5, lambda line: None)
    assert kept == {"d": 1e-1, "b": 1e-2} and calls[-1] == ["a", "c"] and left == pytest.approx(1.1e-3)
    assert keep_noisiest(["a"], lambda chosen: 1e-4, 1e-2, lambda line: None) == ({}, 1e-4)


def test_noise_is_that_of_the_worst_output_beside_what_differs_between_feeds():
    signal = [np.array([[2.0], [4.0]]), np.array([[100.0], [101.0]]), np.zeros((2, 1))]
    assert noise(signal, [signal[0] + 0.1, signal[1] + 0.1, signal[2]]) == pytest.approx(0.02 / 0.5)


def test_a_convolution_absorbs_the_clip_after_it(tmp_path):
    feeds = _feeds(scale=20.0)  # far over six: the range before the Clip would waste most of the 256 levels
    found = quantize_onnx(_graph(tmp_path / "a.onnx"), tmp_path / "b.onnx", feeds, target_db=0.0)
    assert found["layers"] == 3 and not found["kept_in_fp32"]
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert "Clip" not in kinds and kinds.count("Conv") == 3 and "QuantizeLinear" in kinds
    assert noise([_run(tmp_path / "a.onnx", feeds)], [_run(tmp_path / "b.onnx", feeds)]) < 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_what_is_kept_is_computed_in_fp32(tmp_path):
    """In a session of ONNX Runtime's own defaults, too: it would round the layer between two quantised ones."""
    source, feeds = _graph(tmp_path / "a.onnx", outlier=100.0), _feeds()
    found = quantize_onnx(source, tmp_path / "b.onnx", feeds, target_db=10.0)
    assert list(found["kept_in_fp32"]) == ["conv1.weight"]
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert weights["conv1.weight"] == onnx.TensorProto.FLOAT
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    truth = _run(tmp_path / "b.onnx", feeds, sess_options=plain)
    assert noise([truth], [_run(tmp_path / "b.onnx", feeds)]) < 1e-6
    reached = -10 * np.log10(noise([_run(source, feeds)], [truth]))
    assert reached == pytest.approx(found["signal_to_noise_db"], abs=0.1) and reached > 10


@pytest.mark.parametrize(("divisor", "read"), [(128.0, True), (50.0, False)])
def test_bytes_are_read_as_they_are_where_normalizing_and_rounding_undo_each_other(tmp_path, divisor, read):
    """(x - 127) / 128 over its whole range is rounded back to x: nothing stands between pixels and the convolution."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32), "mean": np.float32(127)}
    weights |= {"deviation": np.array([128, divisor, 128], np.float32).reshape(3, 1, 1)}
    steps = [("Transpose", ["pixels"], {"perm": [0, 3, 1, 2]}), ("Cast", ["n0"], {"to": onnx.TensorProto.FLOAT})]
    steps += [("Sub", ["n1", "mean"], {}), ("Div", ["n2", "deviation"], {}), ("Conv", ["n3", "w"], {})]
    nodes = [
        onnx.helper.make_node(kind, given, [f"n{place}"], f"node{place}", **options)
        for place, (kind, given, options) in enumerate(steps)
    ]
    inputs = [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", 16, 16, 3])]
    outputs = [onnx.helper.make_tensor_value_info("n4", onnx.TensorProto.FLOAT, None)]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "a.onnx")
    feeds = [{"pixels": rng.integers(0, 256, (1, 16, 16, 3), np.uint8)} for _ in range(4)]
    quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", feeds)
    kinds = {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}
    assert kinds.isdisjoint({"Cast", "Sub", "Div"}) == read
    assert noise([_run(tmp_path / "a.onnx", feeds)], [_run(tmp_path / "b.onnx", feeds)]) < 1e-3
