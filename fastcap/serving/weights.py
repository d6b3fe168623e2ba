"""One file for the weights of all graphs of a variant: what several graphs hold alike is stored once.

The graphs of the expert groups differ in their experts alone; words, self-attention and vocabulary head are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from fastcap.serving.folder import WEIGHTS

ALIGNMENT = 64  # bytes; both runtimes map the file into memory
SMALL = 256  # bytes; below, an ONNX graph keeps a tensor to itself


class WeightStore:
    """Tensors' bytes in one file, each content once.

    Args:
        file: Where they are written, open in binary mode.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def add(self, content: bytes) -> int:
        """Return where the content lies in the file, writing it if it is new."""
        key = hashlib.sha256(content).digest()
        if key not in self._offsets:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._offsets[key] = self._file.tell()
            self._file.write(content)
        return self._offsets[key]


def share_weights(folder: Path, names: Sequence[str], runtime: str) -> None:
    """Move the weights of a variant's graphs into its one file.

    Args:
        folder: The variant's folder; its graphs hold their weights themselves, as each runtime writes them.
        names: Names of the graphs.
        runtime: ``onnx`` or ``openvino``.
    """
    with open(folder / WEIGHTS, "wb") as file:
        store = WeightStore(file)
        for name in names:
            if runtime == "onnx":
                _share_onnx(folder / f"{name}.onnx", store)
            else:
                _share_openvino(folder / f"{name}.xml", store)


def _share_onnx(path: Path, store: WeightStore) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        content = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(content) >= SMALL:
            kept = (tensor.name, tensor.data_type, list(tensor.dims))
            tensor.Clear()
            tensor.name, tensor.data_type = kept[:2]
            tensor.dims.extend(kept[2])
            tensor.raw_data = content
            set_external_data(tensor, WEIGHTS, store.add(content), len(content))
            tensor.ClearField("raw_data")
    onnx.save(model, path)


def _share_openvino(path: Path, store: WeightStore) -> None:
    binary = path.with_suffix(".bin")
    weights = binary.read_bytes()
    tree = ElementTree.parse(path)
    for constant in tree.iter("data"):
        if "offset" in constant.attrib and "size" in constant.attrib:
            start, size = int(constant.attrib["offset"]), int(constant.attrib["size"])
            constant.set("offset", str(store.add(weights[start : start + size])))
    tree.write(path)
    binary.unlink()
