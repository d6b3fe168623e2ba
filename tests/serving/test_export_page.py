"""The programs that docs/export.md shows caption as the command does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastcap import Captioner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
MODEL = ROOT / "fastcap/pretrained/fastcap.onnx"
PHOTO = ROOT / "tests/assets/cat.jpg"


def program(language):
    (source,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return source


def test_python_needs_fifteen_lines_and_no_fastcap():
    source = program("python")
    assert len(source.splitlines()) <= 15 and "fastcap" not in source
    run = subprocess.run([sys.executable, "-c", source, MODEL, PHOTO], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Captioner.load().caption(PHOTO).text


@pytest.mark.slow
def test_node_captions_too(tmp_path):
    if not shutil.which("npm"):
        pytest.skip("no Node.js here")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", tmp_path]
    if subprocess.run([*install, "onnxruntime-node@1", "sharp@0"], capture_output=True).returncode:
        pytest.skip("npm's registry cannot be reached")
    script = tmp_path / "caption.js"
    script.write_text(program("javascript"), encoding="utf-8")
    run = subprocess.run(["node", script, MODEL, PHOTO], capture_output=True, text=True, check=True)
    # sharp resizes a little otherwise than Pillow: another word may come out, but no other picture.
    assert "cat" in run.stdout.split()
