"""The house's import direction, read from the source with ``ast``.

    entry points, serving, jobs, tools -> build -> module, data, training;  entry points -> reporting -> metrics
    module -> model, losses, metrics, optim;  model -> backbone, alignment, decoder, generation -> types

A room may import whatever its arrows lead to, at any distance. A new top-level module of ``fastcap`` needs a line in
``ROOMS``. Imports inside functions and under ``if TYPE_CHECKING:`` count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastcap

PACKAGE = Path(fastcap.__file__).parent
MAX_LINES = 400


@dataclass(frozen=True)
class Room:
    """What a top-level module of fastcap may import: rooms of fastcap, and which of the frameworks below."""

    arrows: frozenset[str]
    frameworks: frozenset[str]


def room(arrows: str = "", frameworks: str = "") -> Room:
    return Room(frozenset(arrows.split()), frozenset(frameworks.split()))


# What a command line needs: it puts everything together through build, shares what cli holds, and never imports another
# command. cli finds commands by name when it runs one.
ENTRY = room("cli build reporting utils", "lightning hydra omegaconf")

# A dotted name stands for one module or package inside a package; the longest name that fits a file counts.
ROOMS = {
    "__init__": room("types serving"),
    "__main__": room("cli"),
    "cli": room("build reporting", "lightning hydra omegaconf"),
    "train": room("cli build jobs reporting utils", "lightning hydra omegaconf"),
    "eval": room("cli build reporting utils", "lightning hydra omegaconf"),
    "caption": room("cli serving data reporting build"),
    "export": room("cli serving"),
    "jobs": room("cli build data.download metrics reporting training utils", "lightning hydra omegaconf"),
    "tools": room("cli serving build reporting jobs", "lightning hydra omegaconf transformers"),
    "serving": room("cli build data pretrained types utils model metrics", "omegaconf"),
    "reporting.score": ENTRY,
    "reporting.results": ENTRY,
    "reporting": room("types metrics"),
    "build": room("module data training utils", "lightning hydra omegaconf"),
    "pretrained": room("utils"),
    "training": room("module model data pretrained reporting utils", "lightning omegaconf wandb"),
    "module": room("model losses metrics optim utils", "lightning"),
    "data.download": room("data"),
    "data": room("types utils", "lightning"),
    "metrics": room("types utils"),
    "losses": room("types"),
    "optim": room("types"),
    "model": room("backbone alignment decoder generation"),
    "backbone": room("types utils"),
    "alignment": room("types utils"),
    "decoder": room("types utils"),
    "generation": room("types utils"),
    "types": room(),
    "utils.provenance": room("", "omegaconf"),
    "utils": room("utils.provenance"),
}

# Packages that only the rooms naming them may import, by the name they are imported under.
FRAMEWORKS = {
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "lightning_fabric": "lightning",
    "hydra": "hydra",
    "omegaconf": "omegaconf",
    "wandb": "wandb",
    "transformers": "transformers",
}
# Slow to import or not everybody's: inside functions only.
LAZY = {"wandb", "transformers"}


def reachable(name: str) -> set[str]:
    """Every room that ``name`` may import: along its arrows, at any distance."""
    found: set[str] = set()
    waiting = list(ROOMS[name].arrows)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting.extend(ROOMS[step].arrows)
    return found


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, int, bool]]:
    """Yield (dotted name, line, inside a function) of each import; ``from a import b`` yields ``a.b``."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.name, node.lineno, lazy
            case ast.ImportFrom(module=module, names=names, level=level):
                # Level 1 is the file's own package, each further level its parent.
                base = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*base, module] if module else base)
                for alias in names:
                    yield f"{prefix}.{alias.name}", node.lineno, lazy
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name, node.lineno, lazy
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, False)


def room_of(relative: Path | str) -> str:
    """Name of the room that a file or a dotted name belongs to; of one without a room, its top-level module."""
    dotted = relative if isinstance(relative, str) else ".".join(relative.with_suffix("").parts)
    fitting = [name for name in ROOMS if dotted == name or dotted.startswith(f"{name}.")]
    return max(fitting, key=len, default=dotted.partition(".")[0])


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the package at ``root``, one readable line each."""
    found = []
    files = sorted(root.rglob("*.py"))
    rooms = {room_of(path.relative_to(root)) for path in files}
    for unknown in sorted(rooms - ROOMS.keys()):
        found.append(f"{unknown}: unknown top-level module; add it to ROOMS in tests/test_layering.py with its imports")
    for path in files:
        relative = path.relative_to(root)
        source = path.read_text(encoding="utf-8")
        if (lines := len(source.splitlines())) >= MAX_LINES:
            found.append(f"{relative}: {lines} lines, the limit is below {MAX_LINES}; split it by concept")
        here = room_of(relative)
        if here not in ROOMS:
            continue
        allowed = reachable(here) | {here}
        for name, line, lazy in imports(ast.parse(source, str(relative)), ["fastcap", *relative.parts[:-1]]):
            top, _, rest = name.partition(".")
            if top == "fastcap":
                target = room_of(rest)
                # A name that is no module is an attribute of fastcap/__init__.py, such as __version__.
                if target in rooms | ROOMS.keys() and target not in allowed:
                    found.append(f"{relative}:{line}: {here} may not import fastcap.{target}")
            elif framework := FRAMEWORKS.get(top):
                if framework not in ROOMS[here].frameworks:
                    found.append(f"{relative}:{line}: {here} may not import {top}")
                elif framework in LAZY and not lazy:
                    found.append(f"{relative}:{line}: import {top} inside the function that needs it")
    return found


def plant(root: Path, file: str, source: str) -> Path:
    """Write ``source`` into a package tree that is otherwise in order."""
    for name in ROOMS:
        if "." not in name:
            (root / f"{name}.py").write_text("")
    path = root / file
    if path.parent != root:
        (root / f"{path.parent.name}.py").unlink(missing_ok=True)
        path.parent.mkdir(parents=True)
    path.write_text(source)
    return root


def test_fastcap_keeps_the_import_direction() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_rooms_form_no_cycle() -> None:
    assert [name for name in ROOMS if name in reachable(name)] == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("losses.py", "import fastcap.model", "losses may not import fastcap.model"),
        ("data/coco.py", "from fastcap.metrics.caption import CaptionMetrics", "data may not import fastcap.metrics"),
        ("data/coco.py", "from fastcap import build", "data may not import fastcap.build"),
        ("backbone/scan.py", "from ..decoder import moe", "backbone may not import fastcap.decoder"),
        ("backbone/scan.py", "from .. import decoder", "backbone may not import fastcap.decoder"),
        ("backbone/__init__.py", "from ..alignment.cmfa import CMFA", "backbone may not import fastcap.alignment"),
        ("model.py", "from .module import CaptioningModule", "model may not import fastcap.module"),
        ("types.py", "def f():\n    import fastcap.data", "types may not import fastcap.data"),
        ("build.py", "import fastcap.train", "build may not import fastcap.train"),
        ("cli.py", "def main():\n    from fastcap.train import fit", "cli may not import fastcap.train"),
        ("eval.py", "from fastcap.train import fit", "eval may not import fastcap.train"),
        (
            "generation/icmr.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastcap.decoder.moe import Gate",
            "generation may not import fastcap.decoder",
        ),
        ("alignment/cmfa.py", "import importlib\nimportlib.import_module('fastcap.model')", "not import fastcap.model"),
        ("decoder/moe.py", "from lightning.pytorch import LightningModule", "decoder may not import lightning"),
        ("model.py", "import pytorch_lightning as pl", "model may not import pytorch_lightning"),
        ("module.py", "from hydra.utils import instantiate", "module may not import hydra"),
        ("generation/dlag.py", "from omegaconf import DictConfig", "generation may not import omegaconf"),
        ("metrics/caption.py", "def f():\n    import wandb", "metrics may not import wandb"),
        ("training.py", "import wandb", "import wandb inside the function"),
        ("training.py", "class C:\n    from wandb import Table", "import wandb inside the function"),
        ("helpers.py", "", "helpers: unknown top-level module; add it to ROOMS"),
        ("helpers/text.py", "", "helpers: unknown top-level module; add it to ROOMS"),
        ("losses.py", "x = 1\n" * MAX_LINES, "400 lines"),
    ],
)
def test_checker_catches(tmp_path: Path, file: str, source: str, message: str) -> None:
    found = violations(plant(tmp_path, file, source))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "def main():\n    from fastcap.build import ConfigError"),
        (
            "train.py",
            "import hydra\nfrom .cli import UserError\nfrom fastcap.build import load\nfrom fastcap.types import X",
        ),
        ("training.py", "import lightning\ndef log():\n    import wandb\n    async def f(): from wandb import Image"),
        ("module.py", "from fastcap.generation.schedule import cosine\nfrom fastcap import __version__"),
        ("decoder/moe.py", "import torch\nfrom . import attention\nfrom .attention import RALA\nfrom ..types import X"),
        ("data/coco.py", "import lightning, torch, torchmetrics"),
        ("losses.py", "x = 1\n" * (MAX_LINES - 1)),
    ],
)
def test_checker_allows(tmp_path: Path, file: str, source: str) -> None:
    assert violations(plant(tmp_path, file, source)) == []
