"""The backbone leaves eager mode whole: one compiled graph, torch.export, ONNX."""

import numpy as np
import pytest
import torch

from fastcap.backbone.spatial_mamba import SpatialMambaBackbone

IMAGES = torch.linspace(-2, 2, 3 * 64 * 96).view(1, 3, 64, 96)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SpatialMambaBackbone((32, 64), (1, 2), (16,), (1, 2), head_dim=8, expand=1.0, chunk_size=16).eval()


def test_compiles_without_a_graph_break(backbone):
    expected = backbone(IMAGES)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_torch_export_keeps_the_function(backbone):
    program = torch.export.export(backbone, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), backbone(IMAGES), rtol=1e-5, atol=1e-5)


def onnx_difference(module, images, path):
    pytest.importorskip("onnxscript", reason="ONNX export needs the extra `train`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX needs the extra `train`")
    torch.onnx.export(module, (images,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [output] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.inference_mode():
        return np.abs(output - module(images).numpy()).max()


@pytest.mark.slow
def test_onnxruntime_equals_eager(backbone, tmp_path):
    assert onnx_difference(backbone, IMAGES, tmp_path / "tiny.onnx") < 1e-3
