"""int8 through ONNX Runtime: which layers stay in fp32, and that they do."""

import numpy as np
import pytest

from fastcap.serving.quantize_onnx import Layer, keep_noisiest, noise, quantize_onnx, summary

onnx = pytest.importorskip("onnx", reason="exporting needs the extra `train`")
onnxruntime = pytest.importorskip("onnxruntime", reason="exporting needs the extra `train`")

CHANNELS = 8


def _convolutions(path, outlier=1.0, count=3):
    """Convolutions with a Clip each; the second weighs its first input, which is small, `outlier` times as much."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "images"
    for number in range(count):
        values = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 6
        if number == 0:
            values[0] /= outlier
        if number == 1:
            values[:, 0] *= outlier
        weights.append(onnx.numpy_helper.from_array(values, f"model.conv{number}.weight"))
        nodes += [
            onnx.helper.make_node("Conv", [last, weights[-1].name], [f"raw{number}"], f"conv{number}", pads=[1] * 4),
            onnx.helper.make_node("Clip", [f"raw{number}", "zero", "six"], [f"act{number}"], f"clip{number}"),
        ]
        last = f"act{number}"
    nodes[-1].output[0] = "memory"
    weights += [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in (("zero", 0), ("six", 6))]
    shape = [1, CHANNELS, 12, 12]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("images", "memory")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def _feeds(count=8, scale=1.0):
    rng = np.random.default_rng(1)
    return [{"images": scale * rng.normal(size=(1, CHANNELS, 12, 12)).astype(np.float32)} for _ in range(count)]


def _run(path, feeds, **options):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"], **options)
    return [session.run(None, feed)[0] for feed in feeds]


def test_the_noisiest_layers_stay_until_the_others_are_quiet():
    found = [Layer(str(power), [], 10.0**-power) for power in (4, 2, 3, 1)]
    keep_noisiest(found, 25.0)
    assert [layer.name for layer in found if layer.kept] == ["2", "1"]
    facts = summary({"encoder": found})["encoder"]
    assert facts["kept_in_fp32"] == {"2": 20.0, "1": 10.0} and facts["layers"] == 4
    assert facts["expected_signal_to_noise_db"] == pytest.approx(-10 * np.log10(1.1e-3), abs=0.05)
    quiet = [Layer("a", [], 1e-4), Layer("b", [], 0.0)]
    keep_noisiest(quiet, 20.0)
    assert not any(layer.kept for layer in quiet)


def test_noise_is_that_of_the_worst_output():
    signal = [np.full(4, 2.0), np.ones(4), np.zeros(4)]
    assert noise(signal, [np.full(4, 2.2), np.full(4, 1.3), np.zeros(4)]) == pytest.approx(0.09)


def test_a_convolution_absorbs_the_clip_after_it(tmp_path):
    feeds = _feeds(scale=20.0)  # far over six: the range before the Clip would waste most of the 256 levels
    found = quantize_onnx(_convolutions(tmp_path / "a.onnx"), tmp_path / "b.onnx", feeds, target_db=0.0)
    assert [layer.name for layer in found] == ["conv0", "conv1", "conv2"] and not any(layer.kept for layer in found)
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert "Clip" not in kinds and kinds.count("Conv") == 3 and "QuantizeLinear" in kinds
    truth, rounded = _run(tmp_path / "a.onnx", feeds), _run(tmp_path / "b.onnx", feeds)
    assert noise([np.stack(truth)], [np.stack(rounded)]) < 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_quantised_layers_make_the_noise_that_was_foreseen(tmp_path):
    feeds = _feeds(16)
    found = quantize_onnx(_convolutions(tmp_path / "a.onnx"), tmp_path / "b.onnx", feeds, target_db=0.0)
    measured = noise([np.stack(_run(tmp_path / "a.onnx", feeds))], [np.stack(_run(tmp_path / "b.onnx", feeds))])
    assert measured == pytest.approx(sum(layer.noise for layer in found), rel=0.5)
    assert all(layer.noise > 0 for layer in found)


def test_what_is_kept_is_computed_in_fp32(tmp_path):
    from fastcap.serving.runtimes import open_onnx

    source, feeds = _convolutions(tmp_path / "a.onnx", outlier=100.0), _feeds()
    best = quantize_onnx(source, tmp_path / "all.onnx", feeds, target_db=0.0)
    total = sum(layer.noise for layer in best)
    target = -10 * np.log10(0.99 * (total - max(layer.noise for layer in best)) + 0.01 * total)
    found = quantize_onnx(source, tmp_path / "b.onnx", feeds, target_db=target)
    assert [layer.name for layer in found if layer.kept] == ["conv1"]  # between two that are quantised
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert weights["model.conv1.weight"] == onnx.TensorProto.FLOAT
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    truth = np.stack(_run(tmp_path / "b.onnx", feeds, sess_options=plain))
    session = open_onnx(tmp_path / "b.onnx", 1)
    served = np.stack([session.run(None, feed)[0] for feed in feeds])
    assert noise([truth], [served]) < 1e-4


def test_nothing_is_quantised_where_all_is_too_noisy(tmp_path):
    source, feeds = _convolutions(tmp_path / "a.onnx"), _feeds(4)
    found = quantize_onnx(source, tmp_path / "b.onnx", feeds, target_db=200.0)
    assert all(layer.kept for layer in found)
    np.testing.assert_allclose(_run(tmp_path / "b.onnx", feeds), _run(source, feeds), atol=1e-5)
