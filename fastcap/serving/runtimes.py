"""What runs graphs: ONNX Runtime and OpenVINO, each opened when first needed."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastcap.serving.folder import SUFFIXES, WEIGHTS, ExportError

# Inputs by name to outputs in the graph's order; any number of threads may call one at a time.
Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]

INSTALL = "pip install -c constraints.txt -e '.[train]'"


class LazyGraphs:
    """The graphs of a variant by name, each opened at its first use: a captioner starts with the few it needs.

    Args:
        folder: The variant's folder.
        runtime: ``onnx`` or ``openvino``.
        precision: What OpenVINO is to compute in; ONNX Runtime does what the graph says.
        num_threads: Threads a graph may use; None leaves it to the runtime.

    Raises:
        ExportError: If the runtime is not installed.
    """

    def __init__(self, folder: Path, runtime: str, precision: str, num_threads: int | None) -> None:
        open_runtime = {"onnx": _onnx, "openvino": _openvino}[runtime]
        self._folder, self._suffix = folder, SUFFIXES[runtime]
        self._open = open_runtime(precision, num_threads)
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Graph:
        graph = self._graphs.get(name)
        if graph is None:
            with self._lock:
                graph = self._graphs.get(name)
                if graph is None:
                    path = self._folder / f"{name}{self._suffix}"
                    try:
                        graph = self._graphs[name] = self._open(path)
                    except Exception as error:  # both runtimes raise kinds of their own
                        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                        raise ExportError(f"{path}: cannot be opened ({reason[0]})") from error
        return graph


def open_onnx(path: Path, num_threads: int | None) -> Any:
    """Open a graph with ONNX Runtime, as an ``InferenceSession``. num_threads: None leaves it to the runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = num_threads or 0
    # Each graph has threads of its own: those of one must not spin while another works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        # It would round weights that an int8 graph keeps in fp32, all channels with one scale.
        disabled_optimizers=["WeightBiasQuantization"],
    )


def _onnx(precision: str, num_threads: int | None) -> Callable[[Path], Graph]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ExportError(f"this model needs ONNX Runtime: {INSTALL}")

    def open_graph(path: Path) -> Graph:
        session = open_onnx(path, num_threads)
        return lambda inputs: session.run(None, inputs)

    return open_graph


def _openvino(precision: str, num_threads: int | None) -> Callable[[Path], Graph]:
    try:
        import openvino
    except ImportError as error:
        raise ExportError(f"this model needs OpenVINO: {INSTALL}") from error

    core = openvino.Core()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself OpenVINO takes bf16 wherever the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    if num_threads is not None:
        options["INFERENCE_NUM_THREADS"] = num_threads

    def open_graph(path: Path) -> Graph:
        compiled = core.compile_model(core.read_model(path, path.with_name(WEIGHTS)), "CPU", options)
        requests = threading.local()  # a request serves one call at a time

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if not hasattr(requests, "own"):
                requests.own = compiled.create_infer_request()
            results = requests.own.infer(inputs)
            return [results[output] for output in compiled.outputs]

        return run

    return open_graph
