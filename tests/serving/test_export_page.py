"""The programs that docs/export.md shows caption as the command does."""

import re
import subprocess
import sys
from pathlib import Path

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
