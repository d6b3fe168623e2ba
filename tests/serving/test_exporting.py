"""Exports beside their checkpoint, and the mistakes that are named."""

import importlib.util
import json
from pathlib import Path

import pytest

from fastcap import export as export_command
from fastcap.cli import UserError
from fastcap.serving.captioner import Captioner
from fastcap.serving.compare_variants import preferred
from fastcap.serving.export import ExportOptions, export
from fastcap.serving.quantize_onnx import TARGET_DB
from fastcap.serving.readme import COLUMNS
from tests.tiny_captioner import write_checkpoint

PHOTO = Path(__file__).parents[1] / "assets/cat.jpg"


def _row(variant, ms, equal=1.0, loss=None):
    return {
        "variant": variant,
        "encode_ms": ms,
        "decode_ms": 1.0,
        "equal_captions": equal,
        "cider_loss_percent": loss,
    }


def test_the_fastest_faithful_variant_is_preferred():
    first = _row("checkpoint", 9.0)
    assert preferred([first, _row("a", 5.0), _row("b", 2.0, 0.995), _row("c", 1.0, 0.9)]) == "b"
    assert preferred([first, _row("a", 5.0, 1.0, 0.0), _row("b", 2.0, 0.8, 0.9), _row("c", 1.0, 1.0, 1.1)]) == "b"
    assert preferred([first, _row("a", 5.0, 0.5), _row("b", 2.0, 0.6)]) == "b"


def test_the_folder_says_what_is_in_it(tiny_export):
    folder, report = tiny_export
    index = json.loads((folder / "export.json").read_text())
    assert index["default"] == report["default"] == "onnx-fp32"
    size = sum(path.stat().st_size for path in (folder / "onnx-fp32").iterdir())
    assert index["variants"] == {"onnx-fp32": size} and Captioner.load(folder).info["file_bytes"] == size
    assert json.loads((folder / "report.json").read_text())["rows"] == report["rows"]
    readme = (folder / "README.md").read_text()
    assert all(name in readme for name in COLUMNS) and "onnx-fp32" in readme
    checkpoint_row, row = report["rows"]
    assert row["cider"] is not None and row["images"] == 16
    assert checkpoint_row["equal_captions"] == 1.0 and checkpoint_row["cider_loss_percent"] == 0.0
    assert not list(folder.parent.glob(".exported*"))


def test_what_graphs_share_is_stored_once(tiny_export):
    import onnx

    folder = tiny_export[0] / "onnx-fp32"
    places = []
    for group in (0, 1):
        graph = onnx.load(folder / f"step_{group}.onnx", load_external_data=False).graph
        entries = [{e.key: e.value for e in tensor.external_data} for tensor in graph.initializer]
        places.append({(e["offset"], int(e["length"])) for e in entries if e})
    shared, own = places[0] & places[1], places[0] - places[1]
    assert sum(size for _, size in shared) > 10_000 and sum(size for _, size in own) > 10_000
    stored = sum(size for _, size in places[0] | places[1])
    assert (folder / "weights.bin").stat().st_size >= stored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(formats=("onnx",), precisions=("bf16",)), "nothing to export"),
        (ExportOptions(formats=(), precisions=("fp32",)), "nothing to export"),
    ],
)
def test_options_that_make_nothing_are_named(tiny_checkpoint, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export(tiny_checkpoint, tmp_path / "out", options, print)


def test_a_folder_that_holds_something_else_is_kept(tiny_checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no export"):
        export(tiny_checkpoint, tmp_path, ExportOptions(formats=("onnx",), precisions=("fp32",)), print)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_missing_package_is_named(tiny_checkpoint, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    with pytest.raises(UserError, match=r"needs nncf: pip install .*export"):
        export(tiny_checkpoint, tmp_path / "out", ExportOptions(formats=("openvino",), precisions=("int8",)), print)


def test_an_autoregressive_checkpoint_is_captioned_and_not_exported(tmp_path):
    path = write_checkpoint(tmp_path / "ar.ckpt", "decoder=autoregressive_mini", "refinement=greedy")
    captioner = Captioner.load(path)
    assert captioner.num_steps is None and captioner.caption(PHOTO, record_steps=True).steps == []
    with pytest.raises(ValueError, match="word after word"):
        captioner.num_steps = 2
    with pytest.raises(UserError, match=r"ar\.ckpt: .*AutoregressiveDecoder"):
        export(path, tmp_path / "out", ExportOptions(formats=("onnx",), precisions=("fp32",)), print)


@pytest.mark.parametrize("arguments", [["--formats", "tflite"], ["--precisions", "int4"], ["--compare", "0"]])
def test_wrong_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        export_command.main(["ckpt=x.ckpt", *arguments])
    assert stop.value.code == 2 and arguments[1] in capsys.readouterr().err


@pytest.mark.slow
def test_every_variant(tiny_checkpoint, tmp_path, capsys):
    for package in ("onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package, reason="exporting needs the extra `train`")
    folder = tmp_path / "export"
    arguments = [
        f"ckpt={tiny_checkpoint}",
        "--out",
        str(folder),
        "--calibration",
        "16",
        "--compare",
        "16",
        "--threads",
        "1",
    ]
    export_command.main(arguments)
    assert "openvino-int8" in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    rows = {row["variant"]: row for row in report["rows"]}
    assert set(rows) == {"checkpoint", "onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16", "openvino-int8"}
    for name in ("onnx-fp32", "openvino-fp32"):
        assert rows[name]["equal_captions"] >= 0.99
    for runtime in ("onnx", "openvino"):
        assert rows[f"{runtime}-int8"]["cider"] > 0
        suffix, mark = (".onnx", b"QuantizeLinear") if runtime == "onnx" else (".xml", b"FakeQuantize")
        graphs = {p: (folder / f"{runtime}-{p}" / f"encoder{suffix}").read_bytes() for p in ("fp32", "int8")}
        assert mark in graphs["int8"] and mark not in graphs["fp32"]  # so small a model does not get smaller
    quantized = report["quantized"]["onnx-int8"]
    assert set(quantized) == {"encoder", "prepare_0", "prepare_1", "step_0", "step_1"}
    assert all(graph["layers"] > len(graph["kept_in_fp32"]) for graph in quantized.values())
    assert all(graph["signal_to_noise_db"] >= TARGET_DB for graph in quantized.values())
    text = (folder / "README.md").read_text()
    assert all(f"- `{name}`, " in text for name in quantized)
    export_command.main([str(tiny_checkpoint), "--out", str(folder), "--formats", "onnx", "--precisions", "fp32"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "export.json", "onnx-fp32", "report.json"]
