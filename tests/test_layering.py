"""The import direction, read from the source with ``ast``, and how large each package may become.

    entry points, serving, jobs, tools -> build -> module, data, training;  entry points -> reporting -> metrics
    module -> model, losses, metrics, optim;  model -> backbone, alignment, decoder, generation -> types

A package may import whatever its arrows lead to, at any distance. A new top-level module of ``fastcap`` needs a line in
``PACKAGES``. Imports inside functions and under ``if TYPE_CHECKING:`` count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastcap

PACKAGE = Path(fastcap.__file__).parent
ROOT = Path(__file__).parents[1]
MAX_LINES = 400

# Lines of Python at most, docstrings counted; "*.py" are the top-level modules. Growth is a decision: raise a number in
# the commit that needs it, and say why there.
BUDGETS = {
    "*.py": 2_347,
    "alignment": 188,
    "backbone": 1_113,
    "data": 3_145,
    "decoder": 644,
    "generation": 1_030,
    "jobs": 555,
    "metrics": 653,
    "pretrained": 93,
    "reporting": 825,
    "serving": 1_664,
    "tools": 836,
    "training": 1_415,
    "utils": 409,
}


@dataclass(frozen=True)
class Allowed:
    """What a top-level module of fastcap may import: others of fastcap, and which of the frameworks below."""

    arrows: frozenset[str]
    frameworks: frozenset[str]


def allowed(arrows: str = "", frameworks: str = "") -> Allowed:
    return Allowed(frozenset(arrows.split()), frozenset(frameworks.split()))


# What a command line needs: it puts everything together through build, shares what cli holds, and never imports another
# command. cli finds commands by name when it runs one.
ENTRY = allowed("cli build reporting utils", "lightning hydra omegaconf")

# A dotted name stands for one module or package inside a package; the longest name that fits a file counts.
PACKAGES = {
    "__init__": allowed("types serving"),
    "__main__": allowed("cli"),
    "cli": allowed("build reporting", "lightning hydra omegaconf"),
    "train": allowed("cli build jobs reporting utils", "lightning hydra omegaconf"),
    "eval": allowed("cli build reporting utils", "lightning hydra omegaconf"),
    "caption": allowed("cli serving data reporting build"),
    "export": allowed("cli serving"),
    "jobs": allowed("cli build data.download metrics reporting training utils", "lightning hydra omegaconf"),
    "tools": allowed("cli serving build reporting jobs", "lightning hydra omegaconf transformers"),
    "serving": allowed("cli build data pretrained types utils model metrics", "omegaconf"),
    "reporting.score": ENTRY,
    "reporting.results": ENTRY,
    "reporting": allowed("types metrics"),
    "build": allowed("module data training utils", "lightning hydra omegaconf"),
    "pretrained": allowed("utils"),
    "training": allowed("module model data pretrained reporting utils", "lightning omegaconf wandb"),
    "module": allowed("model losses metrics optim utils", "lightning"),
    "data.download": allowed("data"),
    "data": allowed("types utils", "lightning"),
    "metrics": allowed("types utils"),
    "losses": allowed("types"),
    "optim": allowed("types"),
    "model": allowed("backbone alignment decoder generation"),
    "backbone": allowed("types utils"),
    "alignment": allowed("types utils"),
    "decoder": allowed("types utils"),
    "generation": allowed("types utils"),
    "types": allowed(),
    "utils.provenance": allowed("", "omegaconf"),
    "utils": allowed("utils.provenance"),
}

# Packages that only the packages naming them may import, by the name they are imported under.
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
    """Every package that ``name`` may import: along its arrows, at any distance."""
    found: set[str] = set()
    waiting = list(PACKAGES[name].arrows)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting.extend(PACKAGES[step].arrows)
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


def package_of(relative: Path | str) -> str:
    """Name of the package that a file or a dotted name belongs to; of one that is not listed, its top-level module."""
    dotted = relative if isinstance(relative, str) else ".".join(relative.with_suffix("").parts)
    fitting = [name for name in PACKAGES if dotted == name or dotted.startswith(f"{name}.")]
    return max(fitting, key=len, default=dotted.partition(".")[0])


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the package at ``root``, one readable line each."""
    found = []
    files = sorted(root.rglob("*.py"))
    packages = {package_of(path.relative_to(root)) for path in files}
    for unknown in sorted(packages - PACKAGES.keys()):
        found.append(f"{unknown}: unknown; add it to PACKAGES in tests/test_layering.py with its imports")
    for path in files:
        relative = path.relative_to(root)
        source = path.read_text(encoding="utf-8")
        if (lines := len(source.splitlines())) >= MAX_LINES:
            found.append(f"{relative}: {lines} lines, the limit is below {MAX_LINES}; split it by concept")
        here = package_of(relative)
        if here not in PACKAGES:
            continue
        targets = reachable(here) | {here}
        for name, line, lazy in imports(ast.parse(source, str(relative)), ["fastcap", *relative.parts[:-1]]):
            top, _, rest = name.partition(".")
            if top == "fastcap":
                target = package_of(rest)
                # A name that is no module is an attribute of fastcap/__init__.py, such as __version__.
                if target in packages | PACKAGES.keys() and target not in targets:
                    found.append(f"{relative}:{line}: {here} may not import fastcap.{target}")
            elif framework := FRAMEWORKS.get(top):
                if framework not in PACKAGES[here].frameworks:
                    found.append(f"{relative}:{line}: {here} may not import {top}")
                elif framework in LAZY and not lazy:
                    found.append(f"{relative}:{line}: import {top} inside the function that needs it")
    return found


def lines_of(folder: Path, pattern: str = "**/*.py") -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob(pattern))


def test_fastcap_keeps_the_import_direction() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_packages_form_no_cycle() -> None:
    assert [name for name in PACKAGES if name in reachable(name)] == []


@pytest.mark.parametrize("name", BUDGETS)
def test_package_keeps_its_budget(name: str) -> None:
    lines = lines_of(PACKAGE, name) if name == "*.py" else lines_of(PACKAGE / name)
    assert lines <= BUDGETS[name], f"{name}: {lines} lines of {BUDGETS[name]}"


def test_whole_keeps_its_budget() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= BUDGETS.keys()
    sizes = {
        "files of fastcap": (len(list(PACKAGE.rglob("*.py"))), 105),
        "lines of fastcap": (lines_of(PACKAGE), 14_915),
        "entries of fastcap": (len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]), 25),
        "lines of tests": (lines_of(ROOT / "tests"), 9_459),
        "files of conf": (len(list((ROOT / "conf").rglob("*.yaml"))), 49),
    }
    assert not {name: size for name, size in sizes.items() if size[0] > size[1]}
