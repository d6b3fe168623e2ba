"""Exports beside their checkpoint, and the mistakes that are named."""

import json
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest

from fastcap import export as export_command
from fastcap.cli import UserError
from fastcap.data.errors import DataError
from fastcap.pretrained import SHIPPED
from fastcap.serving import export as export_module
from fastcap.serving.captioner import Captioner
from fastcap.serving.compare import preferred
from fastcap.serving.export import export
from fastcap.serving.onnx_model import ModelFileError, open_onnx
from fastcap.training.resume import only_writer
from tests.tiny_captioner import painted, write_checkpoint

PHOTO = Path(__file__).parents[1] / "assets/cat.jpg"


def _row(variant, ms, equal=1.0, loss=None):
    return {
        "variant": variant,
        "ms": ms,
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
    assert json.loads((folder / "export.json").read_text()) == report
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "fastcap-fp32.onnx"]
    assert report["default"] == "fastcap-fp32.onnx"
    assert Captioner.load(folder).info["file_bytes"] == (folder / "fastcap-fp32.onnx").stat().st_size
    checkpoint_row, row = report["rows"]
    assert row["cider"] is not None and row["images"] == 16
    assert checkpoint_row["equal_captions"] == 1.0 and checkpoint_row["cider_loss_percent"] == 0.0


def test_the_file_says_what_any_language_needs(tiny_export, tiny_checkpoint):
    session = onnxruntime.InferenceSession(tiny_export[0] / "fastcap-fp32.onnx")
    about = {k.removeprefix("fastcap."): v for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert about["image_size"] == "32" and about["precision"] == "fp32" and about["licence"]
    assert json.loads(about["operating_point"]) == {"num_steps": 2, "length_beam": 3, "max_length": 20}
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pixels", "tensor(uint8)", [32, 32, 3])
    words = json.loads(about["vocabulary"])["pieces"]
    names = ["tokens", "lengths", "confidence", "words"]
    tokens, lengths, confidence, spelt = session.run(names, {"pixels": painted(0)[None]})
    assert " ".join(spelt[0, : lengths[0]]) == Captioner.load(tiny_checkpoint).caption(painted(0)).text
    expected = Captioner.load(tiny_checkpoint).caption(painted(0))
    assert " ".join(words[token] for token in tokens[0, : lengths[0]]) == expected.text
    assert float(confidence[0]) == pytest.approx(expected.confidence, rel=1e-3)


def small(*more):
    return export_command.parse_arguments(["--precisions", "fp32", "--compare", "2", "--threads", "1", *more])


def test_an_export_is_written_where_only_the_folder_itself_may_be(tiny_checkpoint, tiny_export, tmp_path, monkeypatch):
    """As onto a mounted volume: nothing is made beside it, a link is followed, an older export goes last."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "mine.txt").write_text("mine")
    (volume / ".export-killed").mkdir()
    (volume / ".export-killed/source.onnx").write_bytes(b"half")
    (volume / "fastcap-int8.onnx").write_bytes(b"older")
    rows = [{"file": None}, {"file": "fastcap-int8.onnx"}]
    (volume / "export.json").write_text(json.dumps({"rows": rows, "default": "fastcap-int8.onnx"}))
    (tmp_path / "link").symlink_to(volume)
    monkeypatch.chdir(volume)
    replaced, seen = os.replace, []

    def watch(source, target):
        seen.append((volume / "fastcap-int8.onnx").exists())
        assert Path(source).resolve().is_relative_to(volume)
        replaced(source, target)

    monkeypatch.setattr(os, "replace", watch)
    monkeypatch.setattr(
        export_module, "write_onnx", lambda graph, size, path: shutil.copy(exported_file(tiny_export), path)
    )
    monkeypatch.setattr(export_module, "add_words", lambda model, pieces: None)  # they are in it
    for target in (tmp_path / "link", Path(".")):
        with only_writer(volume / ".export-at-work"):
            export(tiny_checkpoint, target, small(), lambda line: None)
        names = [".export-at-work", "export.json", "fastcap-fp32.onnx", "mine.txt"]
        assert sorted(path.name for path in volume.iterdir()) == names
    assert seen[:2] == [True, True], "the older export went before the new one was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "volume"]


def exported_file(tiny_export):
    return tiny_export[0] / "fastcap-fp32.onnx"


def test_what_cannot_be_written_is_said_before_the_work(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        export(tiny_checkpoint, tmp_path / "file/export", small(), print)
    (tmp_path / "fastcap-fp32.onnx").write_text("mine")
    with pytest.raises(UserError, match="exists and is of no export"):
        export(tiny_checkpoint, tmp_path, small(), print)
    assert (tmp_path / "fastcap-fp32.onnx").read_text() == "mine"
    with pytest.raises(UserError, match="a file holds one precision"):
        export(tiny_checkpoint, tmp_path / "two.onnx", small("--precisions", "fp32,int8"), print)
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_text("no image")
    with pytest.raises(DataError, match=r"[ab]\.jpg: not an image"):
        export(tiny_checkpoint, tmp_path / "new", small("--images", str(tmp_path / "photos")), pytest.fail)


def test_a_full_disk_is_no_damaged_model():
    with pytest.raises(ModelFileError, match="/dev/full: cannot be written"):
        open_onnx(SHIPPED / "fastcap.onnx", optimized=Path("/dev/full"), level="BASIC")


def test_an_autoregressive_checkpoint_is_captioned_and_not_exported(tmp_path):
    path = write_checkpoint(tmp_path / "ar.ckpt", "decoder=autoregressive_mini", "refinement=greedy")
    captioner = Captioner.load(path)
    assert captioner.num_steps is None and captioner.caption(PHOTO, record_steps=True).steps == []
    with pytest.raises(ValueError, match="word after word"):
        captioner.caption(PHOTO, num_steps=2)
    with pytest.raises(UserError, match=r"ar\.ckpt: .*AutoregressiveDecoder"):
        export(path, tmp_path / "out", small(), print)


@pytest.mark.parametrize("arguments", [["--num-steps", "0"], ["--precisions", "int4"], ["--compare", "0"]])
def test_wrong_options_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        export_command.main(["ckpt=x.ckpt", *arguments])
    assert stop.value.code == 2 and arguments[1] in capsys.readouterr().err


@pytest.mark.slow
def test_both_precisions_from_the_command_line(tiny_checkpoint, tmp_path, capsys):
    counts = ["--calibration", "16", "--compare", "16", "--threads", "1"]
    export_command.main([f"ckpt={tiny_checkpoint}", "--out", str(tmp_path / "export"), *counts])
    assert "int8" in capsys.readouterr().out
    report = json.loads((tmp_path / "export/export.json").read_text())
    rows = {row["variant"]: row for row in report["rows"]}
    assert set(rows) == {"checkpoint", "fp32", "int8"}
    assert rows["fp32"]["equal_captions"] >= 0.99 and rows["int8"]["cider"] > 0
    content = {name: (tmp_path / f"export/fastcap-{name}.onnx").read_bytes() for name in ("fp32", "int8")}
    assert b"QuantizeLinear" in content["int8"] and b"QuantizeLinear" not in content["fp32"]
