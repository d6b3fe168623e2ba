"""The shipped model: card, hashes and files agree, and photographs of packages are captioned as recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastcap import Captioner
from fastcap.build import load_checkpoint
from fastcap.pretrained import CARD, CONFIG, SHIPPED, WEIGHTS, card_hashes, verified

ASSETS = Path(__file__).parents[1] / "assets"
CAPTIONS = {
    "cat.jpg": "a close up of a cat laying on a bed",
    "coffee.jpg": "a plate of food on top of a bowl",
    "astronaut.jpg": "a man in a red shirt is standing in front of a crowd",
}


def test_files_are_those_of_the_card_and_small():
    named = card_hashes((SHIPPED / CARD).read_text())
    assert named.keys() == {"fastcap.onnx", WEIGHTS, CONFIG}
    sizes = {name: verified(name).stat().st_size for name in named}
    assert sizes["fastcap.onnx"] <= 16e6 and sum(sizes.values()) <= 35e6


@pytest.mark.parametrize("name", CAPTIONS)
def test_photographs_are_captioned_as_recorded(name):
    assert Captioner.load(num_threads=1).caption(ASSETS / name).text == CAPTIONS[name]


def test_the_weights_are_a_checkpoint_by_the_name_pretrained():
    loaded = load_checkpoint("pretrained")
    eager = Captioner.load(loaded.path, num_threads=1)
    assert eager.caption(ASSETS / "cat.jpg").text == CAPTIONS["cat.jpg"]
    assert eager.info["parameters"] == Captioner.load(num_threads=100_000).info["parameters"]


def test_the_command_captions_in_any_folder_without_torch(tmp_path):
    Image.new("1", (10_000, 9_000)).save(large := tmp_path / "large.png")
    program = (
        "import sys\nfrom PIL import Image\nfrom fastcap import cli\n"
        f"sys.argv[1:] = ['caption', {str(ASSETS / 'cat.jpg')!r}, '--json', '--threads', '1']\n"
        f"cli.main()\nImage.open({str(large)!r})\n"
        "slow = {'torch', 'lightning', 'hydra', 'tokenizers', 'matplotlib', 'rich', 'pandas'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    home = tmp_path / "home"
    environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parents[1]), "HOME": str(home)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caption"] == CAPTIONS["cat.jpg"]
    assert "the model that comes with FastCap" in done.stderr and done.stderr.count("\n") == 1  # no warning of Pillow's
    assert not home.exists()
