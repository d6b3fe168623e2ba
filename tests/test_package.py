"""The wheel is whole, and its light part does without torch."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from fastcap.cli import EXTRAS

ROOT = Path(__file__).parents[1]
# Python reads it as it starts: modules of the extras are then as if they were not installed.
WITHOUT_EXTRAS = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted({m for modules in EXTRAS.values() for m in modules})!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel holds, unpacked: (folder, file names)."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=280)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
        return folder / "site", archive.namelist()


def _python(installed, tmp_path, *arguments, light=False):
    if light:
        (tmp_path / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    path = os.pathsep.join([str(tmp_path), str(installed[0])])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_wheel_holds_every_file_of_package_and_configs(installed):
    tracked = subprocess.run(["git", "ls-files", "fastcap", "conf"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a checkout")
    files = [name for name in tracked.stdout.split() if (ROOT / name).exists()]
    expected = {f"fastcap/{name}" if name.startswith("conf/") else name for name in files}
    assert len(expected) > 100 and expected <= set(installed[1])


def test_light_package_requires_three_packages(installed):
    (metadata,) = installed[0].glob("*.dist-info/METADATA")
    required = Parser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist")
    plain = {re.match(r"[a-z]+", line)[0] for line in required if "extra ==" not in line}
    assert plain == {"numpy", "onnxruntime", "pillow"}


@pytest.mark.slow
def test_training_configuration_composes_from_the_wheel(installed, tmp_path):
    done = _python(installed, tmp_path, "-m", "fastcap.cli", "train", "--cfg", "job", "experiment=photographs")
    assert done.returncode == 0 and "backbone:" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["train", "eval", "export"])
def test_command_without_its_extra_names_it(installed, tmp_path, command):
    done = _python(installed, tmp_path, "-m", "fastcap.cli", command, light=True)
    assert done.returncode == 2
    assert done.stderr.startswith("fastcap: error: the package ") and "fastcap[train]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["caption", "demo"])
def test_light_commands_start_without_the_extras(installed, tmp_path, command):
    done = _python(installed, tmp_path, "-m", "fastcap.cli", command, "--help", light=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
