"""One door for checkpoints and exports: same captions, same errors, no torch for an export."""

import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcap import caption as caption_command
from fastcap.build import load_checkpoint
from fastcap.data.errors import DataError
from fastcap.serving.captioner import Captioner
from fastcap.serving.chain import BigramTable
from fastcap.serving.eager import EagerNetwork
from fastcap.serving.folder import ExportError
from fastcap.training.checkpoints import CheckpointError
from tests.tiny_captioner import painted

ROOT = Path(__file__).parents[2]

PIXELS = [painted(seed) for seed in range(12)]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((50, 40), 80).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_export"])
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
    caption = captioner.caption(PIXELS[0], num_steps=3, record_steps=True)
    assert 1 <= len(caption.steps) <= 3
    for step in caption.steps:
        assert len(step.words) == len(step.confidence) == len(step.remasked)
    assert not any(caption.steps[-1].remasked)
    assert 0 < caption.confidence <= 1 and caption.score == pytest.approx(np.log(caption.confidence))
    assert sum(caption.expert_weights) == pytest.approx(1)
    assert set(caption.milliseconds) == {"decode_image", "encode", "decode_caption"}
    assert captioner.num_steps == 4
    assert len(captioner.caption(PIXELS[0], num_steps=1, record_steps=True).steps) == 1


def test_number_of_steps_can_be_set_and_is_checked(captioner):
    captioner.num_steps = 1
    try:
        assert captioner.info["num_steps"] == 1
        assert len(captioner.caption(PIXELS[0], record_steps=True).steps) == 1
    finally:
        captioner.num_steps = 4
    for wrong in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="num_steps"):
            captioner.num_steps = wrong
        with pytest.raises(ValueError, match="num_steps"):
            captioner.caption(PIXELS[0], num_steps=wrong)


@pytest.mark.parametrize(
    "wrong", [b"no image", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(captioner, wrong):
    with pytest.raises(DataError):
        captioner.caption(wrong)


def test_info_is_plain(captioner):
    info = json.loads(json.dumps(captioner.info))
    assert info["kind"] in ("eager", "onnx") and info["precision"] == "fp32" and info["image_size"] == 32
    assert info["parameters"] > 10_000 and info["file_bytes"] > 4 * info["parameters"] and info["name"] == "scenes"


def test_images_are_captioned_at_the_size_of_evaluation(tiny_checkpoint):
    loaded = load_checkpoint(tiny_checkpoint)
    loaded.config["data"]["eval_image_size"] = 48
    network = EagerNetwork(loaded)
    assert (loaded.image_size, network.image_size) == (48, 48)
    loaded.config["data"]["eval_image_size"] = None
    assert loaded.image_size == 32


def test_export_keeps_captions_and_their_making(tiny_checkpoint, tiny_export):
    folder, report = tiny_export
    eager, graphs = Captioner.load(tiny_checkpoint), Captioner.load(folder, num_threads=1)
    rows = {row["variant"]: row for row in report["rows"]}
    assert rows["onnx-fp32"]["equal_captions"] >= 0.99
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
    assert experts == {0, 1}, "no image went to one of the experts: nothing was said of its graphs"


def test_refinement_can_be_overridden(tiny_checkpoint, tiny_export):
    models = [Captioner.load(path, num_steps=2, num_lengths=1) for path in (tiny_checkpoint, tiny_export[0])]
    assert [model.num_steps for model in models] == [2, 2]
    assert [models[0].caption(p).text for p in PIXELS] == [models[1].caption(p).text for p in PIXELS]
    for path in (tiny_checkpoint, tiny_export[0]):
        with pytest.raises(ValueError, match="num_stepz"):
            Captioner.load(path, num_stepz=2)
        with pytest.raises(ValueError, match="num_threads"):
            Captioner.load(path, num_threads=0)


def test_words_are_chosen_together_in_every_runtime(tiny_checkpoint, tiny_export, tmp_path):
    chosen = {}
    for weights in ({}, {"bigram_weight": 1.0}, {"bigram_weight": 1.0, "trigram_weight": 3.0}):
        options = {"num_steps": 1, "num_lengths": 2, "bigram_weight": 0.0, "num_choices": 3, **weights}
        models = [Captioner.load(path, **options) for path in (tiny_checkpoint, tiny_export[0])]
        chosen[len(weights)], exported = ([model.caption(p).text for p in PIXELS] for model in models)
        assert chosen[len(weights)] == exported
    for more in (1, 2):
        assert chosen[more] != chosen[more - 1], "neighbours changed no word: nothing was said of them"
    with pytest.raises(ValueError, match=r"num_choices = 5: this export scores 4"):
        Captioner.load(tiny_export[0], num_choices=5)
    folder = shutil.copytree(tiny_export[0] / "onnx-fp32", tmp_path / "uncounted")
    table = BigramTable.read(folder / "bigrams.npz")
    replace(table, pairs=table.pairs[:0], worth=table.worth[:0]).write(folder / "bigrams.npz")
    with pytest.raises(ValueError, match="holds no counts of neighbours"):
        Captioner.load(folder)
    assert Captioner.load(folder, bigram_weight=0).caption(PIXELS[0]).text
    replace(table, triples=table.triples[:0], triple_worth=table.triple_worth[:0]).write(folder / "bigrams.npz")
    with pytest.raises(ValueError, match="holds no counts of triples"):
        Captioner.load(folder, trigram_weight=0.2)
    replace(table, unseen=table.unseen[1:]).write(folder / "bigrams.npz")
    with pytest.raises(ExportError, match=r"bigrams\.npz: of \d+ words, tokenizer\.json holds \d+"):
        Captioner.load(folder)


def test_an_export_is_captioned_without_torch(tiny_export, photo):
    program = (
        "import sys\nfrom fastcap import caption\n"
        f"caption.main([{str(photo)!r}, '--model', {str(tiny_export[0])!r}, '--json'])\n"
        "slow = {'torch', 'lightning', 'hydra', 'omegaconf', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caption"]


def test_a_variant_stands_alone(tiny_export, tmp_path):
    copied = shutil.copytree(tiny_export[0] / "onnx-fp32", tmp_path / "alone")
    assert Captioner.load(copied).caption(PIXELS[0]).text == Captioner.load(tiny_export[0]).caption(PIXELS[0]).text


def _edit(folder, file, **fields):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "onnx-fp32/step_1.onnx").unlink(), r"step_1\.onnx: file of the exported model is missing"),
        (lambda f: (f / "onnx-fp32/encoder.onnx").write_bytes(b"x"), r"encoder\.onnx: cannot be opened"),
        (lambda f: (f / "onnx-fp32/weights.bin").unlink(), r"weights\.bin: file of the exported model is missing"),
        (lambda f: (f / "onnx-fp32/tokenizer.json").write_text("{}"), r"tokenizer\.json"),
        (lambda f: (f / "onnx-fp32/bigrams.npz").unlink(), r"bigrams\.npz: file of the exported model is missing"),
        (lambda f: (f / "onnx-fp32/bigrams.npz").write_bytes(b"x"), r"bigrams\.npz: not a table of neighbours"),
        (lambda f: (f / "export.json").write_text("[]"), r"export\.json: must hold a JSON object"),
        (lambda f: _edit(f, "export.json", default="../other"), r"export\.json: field `default`"),
        (lambda f: _edit(f, "onnx-fp32/model.json", format_version=99), r"model\.json: field `format_version` is 99"),
        (lambda f: _edit(f, "onnx-fp32/model.json", runtime="tflite"), r"model\.json: field"),
        (lambda f: _edit(f, "onnx-fp32/model.json", refinement={"num_steps": 0}), r"model\.json: .*num_steps = 0"),
        (lambda f: (f / "export.json").unlink(), "not an exported model"),
    ],
)
def test_a_spoilt_export_is_named(tiny_export, tmp_path, spoil, message):
    folder = shutil.copytree(tiny_export[0], tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        Captioner.load(folder)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint"):
        Captioner.load(tmp_path / "nowhere")


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


@pytest.mark.parametrize(("key", "much"), [("naming_weight", 4.0), ("concept_weight", 4.0), ("phrase_weight", 40.0)])
def test_the_images_concepts_count_in_every_runtime(key, much, tiny_checkpoint, tiny_export):
    chosen = {}
    for weight in (0.0, much):
        options = {"num_steps": 2, "num_lengths": 4, "naming_cost": 0.3, key: weight}
        models = [Captioner.load(path, **options) for path in (tiny_checkpoint, tiny_export[0])]
        chosen[weight], exported = ([model.caption(p).text for p in PIXELS] for model in models)
        assert chosen[weight] == exported
    assert chosen[0.0] != chosen[much], "the concepts changed no caption: nothing was said of them"
