"""int8 for weights and activations: what graphs are fed on training images, and OpenVINO's way with it.

Quantised are the layers with weights of their own: convolutions and matrix products. What multiplies activations with
activations (the scan, the attentions) stays in fp32, as do norms and softmax.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.exported import ExportedNetwork, Graphs
from fastcap.serving.runtimes import Graph

Feeds = dict[str, list[dict[str, np.ndarray]]]


class Recorder:
    """Graphs that keep what they are fed.

    Args:
        graphs: The graphs.
        limit: Feeds to keep of each.
    """

    def __init__(self, graphs: Graphs, limit: int) -> None:
        self.graphs, self.limit = graphs, limit
        self.feeds: Feeds = {}

    def __getitem__(self, name: str) -> Graph:
        graph, kept = self.graphs[name], self.feeds.setdefault(name, [])

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if len(kept) < self.limit:
                kept.append(inputs)
            return graph(inputs)

        return run


def record_feeds(network: ExportedNetwork, images: Iterable[np.ndarray], num_groups: int, limit: int = 256) -> Feeds:
    """Caption images and keep what each graph was fed.

    A group of experts that no image chose is fed all of them: its graphs need ranges too.

    Args:
        network: The model in fp32; it captions as it will be used.
        images: Pixels, uint8, each (S, S, 3).
        num_groups: Groups of experts.
        limit: Feeds to keep of each graph.
    """
    recorder = Recorder(network.graphs, limit)
    network.graphs, graphs = recorder, network.graphs
    seen: list[np.ndarray] = []
    try:
        for image in images:
            seen.append(image[None])
            network.decode(network.encode(seen[-1]), None, False)
        for group in range(num_groups):
            if f"step_{group}" not in recorder.feeds:
                for pixels in seen:
                    outputs = graphs["encoder"]({"images": pixels})
                    forced = network.prepare(group, np.zeros(1, np.int64), outputs)
                    network.decode((outputs[2], [forced]), None, False)
    finally:
        network.graphs = graphs
    return recorder.feeds


def quantize_openvino(source: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    """Quantise a graph to int8 with NNCF and write it as OpenVINO's IR. source: ONNX or IR; target: the ``.xml``."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(source)
    # ONNX Runtime's int64 is C's `long long`, which OpenVINO's bindings do not take for the int64 that it is.
    named = [{name: value.view(value.dtype.name) for name, value in feed.items()} for feed in feeds]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(named),
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=_kept_as_they_are(model), validate=False),
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _kept_as_they_are(model: Any) -> list[str]:
    """Names of all operations but layers with weights of their own: NNCF would round sums, products and norms too."""

    def constant(node: Any) -> bool:
        if node.get_type_name() == "Constant":
            return True
        inputs = [port.get_source_output().get_node() for port in node.inputs()]
        return bool(inputs) and all(map(constant, inputs))

    def layer(node: Any) -> bool:
        inputs = [port.get_source_output().get_node() for port in node.inputs()]
        return node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul") and any(map(constant, inputs))

    structure = ("Constant", "Convert", "Parameter", "Result")
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() not in structure and not layer(node)
    ]
