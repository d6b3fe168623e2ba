"""One way to captions for checkpoints and exports: same captions, same errors, no torch for an export."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from fastcap import caption as caption_command
from fastcap.build import load_checkpoint
from fastcap.data.errors import DataError
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.serving.captioner import Captioner, EagerNetwork
from fastcap.serving.export import vocabulary
from fastcap.serving.onnx_model import ModelFileError, spell
from tests.tiny_captioner import painted

ROOT = Path(__file__).parents[2]

PIXELS = [painted(seed) for seed in range(12)]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((50, 40), 80).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module", params=["tiny_checkpoint", pytest.param("tiny_export", marks=pytest.mark.slow)])
def captioner(request):
    if request.param == "tiny_checkpoint":
        return Captioner.load(request.getfixturevalue("tiny_checkpoint"))
    return Captioner.load(request.getfixturevalue("tiny_export")[0], num_threads=1)


def told(caption):
    """All that a caption says, less the time it took."""
    return replace(caption, milliseconds={})


def test_every_kind_of_image_gives_one_caption(captioner, photo):
    content = photo.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    expected = told(captioner.caption(photo))
    for source in (str(photo), content, image, np.asarray(image)):
        assert told(captioner.caption(source)) == expected


def test_a_caption_does_not_depend_on_its_batch(captioner):
    alone = [captioner.caption(pixels) for pixels in PIXELS]
    together = captioner.caption_batch(PIXELS)
    assert [c.text for c in together] == [c.text for c in alone]
    np.testing.assert_allclose([c.confidence for c in together], [c.confidence for c in alone], rtol=1e-4)
    assert captioner.caption_batch([]) == []


def test_threads_share_a_captioner(captioner):
    expected = [captioner.caption(pixels).text for pixels in PIXELS]
    with ThreadPoolExecutor(4) as pool:
        assert [c.text for c in pool.map(captioner.caption, PIXELS)] == expected


def test_steps_are_told_and_chosen(captioner):
    caption = captioner.caption(PIXELS[0], num_steps=2, record_steps=True)
    assert 1 <= len(caption.steps) <= 2
    for step in caption.steps:
        assert len(step.words) == len(step.confidence) == len(step.remasked)
    assert not any(caption.steps[-1].remasked)
    assert 0 < caption.confidence <= 1
    assert sum(caption.expert_weights) == pytest.approx(1)
    assert set(caption.milliseconds) == {"decode_image", "caption"}
    assert captioner.num_steps == 2


def test_number_of_steps_can_be_set_and_is_checked(tiny_checkpoint):
    captioner = Captioner.load(tiny_checkpoint, num_steps=1)
    assert captioner.info["num_steps"] == 1
    assert len(captioner.caption(PIXELS[0], record_steps=True).steps) == 1
    assert len(captioner.caption(PIXELS[0], num_steps=3, record_steps=True).steps) > 1
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="num_steps"):
            captioner.caption(PIXELS[0], num_steps=wrong)


@pytest.mark.parametrize(
    "wrong", [b"no image", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(captioner, wrong):
    with pytest.raises(DataError):
        captioner.caption(wrong)


def test_images_are_captioned_at_the_size_of_evaluation(tiny_checkpoint):
    loaded = load_checkpoint(tiny_checkpoint)
    loaded.config["data"]["eval_image_size"] = 48
    network = EagerNetwork(loaded)
    assert (loaded.image_size, network.image_size) == (48, 48)
    loaded.config["data"]["eval_image_size"] = None
    assert loaded.image_size == 32


def test_a_checkpoint_is_captioned_as_it_is_evaluated(tiny_checkpoint):
    loaded, pixels = load_checkpoint(tiny_checkpoint), np.stack(PIXELS)
    with torch.no_grad():
        expected = loaded.model(torch.tensor(pixels).permute(0, 3, 1, 2))
    network = EagerNetwork(loaded)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.model.backbone.modules())
    found = network.run(pixels, None, False)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_export_keeps_captions_and_their_making(tiny_checkpoint, tiny_export):
    folder, report = tiny_export
    eager, graphs = Captioner.load(tiny_checkpoint), Captioner.load(folder, num_threads=1)
    rows = {row["variant"]: row for row in report["rows"]}
    assert rows["fp32"]["equal_captions"] >= 0.99
    assert eager.info["parameters"] == graphs.info["parameters"]
    experts = set()
    for pixels in PIXELS:
        one, other = (c.caption(pixels, record_steps=True) for c in (eager, graphs))
        assert one.text == other.text
        assert [s.words for s in one.steps] == [s.words for s in other.steps]
        np.testing.assert_allclose(one.confidence, other.confidence, rtol=1e-3)
        np.testing.assert_allclose(one.expert_weights, other.expert_weights, atol=1e-5)
        experts.add(int(np.argmax(one.expert_weights)))
    assert len({eager.caption(pixels).text for pixels in PIXELS}) > 1
    assert experts == {0, 1}, "no image went to one of the experts: nothing was said of it"


def test_steps_and_lengths_are_fixed_in_an_export(tiny_checkpoint, tiny_export):
    with pytest.raises(ValueError, match=r"num_steps = 3: this model was exported with 2; .*--num-steps 3"):
        Captioner.load(tiny_export[0]).caption(PIXELS[0], num_steps=3)
    with pytest.raises(ValueError, match=r"length_beam = 2: this model was exported with 3; .*--length-beam 2"):
        Captioner.load(tiny_export[0], length_beam=2)
    one, other = (Captioner.load(tiny_checkpoint, length_beam=beam) for beam in (1, 5))
    assert [one.caption(p).text for p in PIXELS] != [other.caption(p).text for p in PIXELS]
    for path in (tiny_checkpoint, tiny_export[0]):
        with pytest.raises(ValueError, match="num_threads"):
            Captioner.load(path, num_threads=0)


def test_a_spoilt_model_file_is_named(tiny_export, tmp_path):
    whole = (tiny_export[0] / "fastcap-fp32.onnx").read_bytes()
    for content in (b"x", whole[:1000], whole[: len(whole) // 2], b""):
        (tmp_path / "spoilt.onnx").write_bytes(content)
        with pytest.raises(ModelFileError, match=r"spoilt\.onnx: (damaged or no ONNX model|not a model that)"):
            Captioner.load(tmp_path / "spoilt.onnx")
    for name, value, message in (
        ("format_version", "99", "its format is version 99, this FastCap reads 1; export its checkpoint again"),
        ("vocabulary", "{}", "not a model that `fastcap export` wrote"),
        ("operating_point", '{"num_steps": 1}', "not a model that .*length_beam"),
    ):
        model = onnx.load_from_string(whole)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**properties, f"fastcap.{name}": value})
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(ModelFileError, match=message):
            Captioner.load(tmp_path / "other.onnx")
    for name in ("gone.onnx", "gone.ckpt"):
        with pytest.raises(ModelFileError, match=rf"{name}: no such model file"):
            Captioner.load(tmp_path / name)


def test_a_runs_folder_is_its_best_checkpoint(tiny_checkpoint, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(tiny_checkpoint, tmp_path / "run/checkpoints/best.ckpt")
    assert Captioner.load(tmp_path / "run").info["name"] == "scenes"


def test_text_is_spelt_out_without_the_tokenizer():
    captions = ["A man\u2019s t-shirt, naïve café \U0001f415!", "two dogs  run.", "Straße in 東京 ' s"]
    tokenizer = train_word_tokenizer(captions, 1)
    words = vocabulary(tokenizer)
    generator = np.random.default_rng(0)
    rows = [tokenizer.encode(text) for text in captions]
    rows += [generator.integers(0, tokenizer.vocab_size, 9).tolist() for _ in range(50)]
    for ids in rows:
        assert spell(words, ids) == tokenizer.decode(ids)


def test_command_takes_patterns_standard_input_and_exports(tiny_export, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PIXELS[ord(name[0]) % 3]).save(tmp_path / name)
    model = ["--model", str(tiny_export[0]), "--json", "--threads", "1", "--batch-size", "2"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path / 'c.png'}\n\n{tmp_path / 'gone.png'}\n"))
    with pytest.raises(SystemExit) as stop:
        caption_command.main([str(tmp_path / "[ab].png"), "-", *model])
    assert stop.value.code == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.png", "b.png", "c.png", "gone.png"]
    assert "gone.png" in rows[3]["error"] and all(row["caption"] for row in rows[:3])
    with pytest.raises(SystemExit) as stop:
        caption_command.main([str(tmp_path / "*.tiff"), *model])
    assert stop.value.code == 2 and "no file matches" in capsys.readouterr().err


def test_a_stopped_run_goes_on(tiny_export, tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PIXELS[ord(name[0]) % 3]).save(tmp_path / name)
    (tmp_path / "d.png").write_text("no image")
    out = tmp_path / "captions.jsonl"
    command = [str(tmp_path), "--model", str(tiny_export[0]), "--out", str(out), "--threads", "1"]
    with pytest.raises(SystemExit) as stop:
        caption_command.main(command)
    assert stop.value.code == 1 and "d.png" in capsys.readouterr().err
    lines = out.read_text().splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["a.png", "b.png", "c.png", "d.png"]
    with pytest.raises(SystemExit):
        caption_command.main(command)
    assert "exists; add --resume" in capsys.readouterr().err
    out.write_text("\n".join([lines[0], lines[3], lines[1][:20]]))  # stopped while it wrote
    with pytest.raises(SystemExit) as stop:
        caption_command.main([*command, "--resume"])
    assert stop.value.code == 1, "d.png still has no caption"
    assert sorted(out.read_text().splitlines()) == sorted(lines)
    assert "2 images were done before, 1 failed" in capsys.readouterr().err
    for content in ("[]\n", "one line of notes"):
        out.write_text(content)
        with pytest.raises(SystemExit):
            caption_command.main([*command, "--resume"])
        assert "holds something else than captions" in capsys.readouterr().err and out.read_text() == content


def test_a_doubtful_caption_is_said_to_be_so(tiny_export, tmp_path, monkeypatch, capsys):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    command = [str(tmp_path / "a.png"), "--model", str(tiny_export[0])]
    for threshold, doubtful in ((0.0, False), (1.1, True)):
        monkeypatch.setattr(caption_command, "LOW_CONFIDENCE", threshold)
        caption_command.main(command)
        assert ("low confidence" in capsys.readouterr().out) == doubtful


def test_the_speed_and_what_is_left_are_told(monkeypatch, capsys):
    clock = iter([0.0, 0.5, 2.0, 4.0])
    monkeypatch.setattr(caption_command.time, "perf_counter", lambda: next(clock))
    assert list(caption_command.with_progress([{}, {}, {}], 3, 1.0)) == [{}, {}, {}]
    told = capsys.readouterr().err.splitlines()
    assert told == ["2 images of 3, 1 s left, 1.0 images/s", "3 images of 3, 0 s left, 0.8 images/s"]
