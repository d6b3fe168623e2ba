"""`fastcap` as a process of its own, forked from one that has imported everything: no ten seconds a time."""

import multiprocessing
import os
import runpy
import sys
import warnings
from pathlib import Path

from tests import tiny

ROOT = Path(__file__).parents[2]
QUICK = [
    *tiny.QUICK,
    "trainer.log_every_n_steps=2",
    "callbacks.checkpoint.every_n_steps=2",
    "hydra.run.dir=run",
    "resume=last",
    "+callbacks.killer._target_=tests.training.killer.Killer",
]


def context():
    """Processes forked from one that has imported everything and computed nothing."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["fastcap.train", "tests.training.killer"])
    return server


def _run(folder, arguments, environment, output):
    os.chdir(folder)
    os.environ.update(environment)
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = int(environment.get("LOCAL_RANK", 0))  # Lightning reads it when it is imported
    file = open(output, "w", buffering=1)  # noqa: SIM115  # until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    warnings.filterwarnings("ignore", ".* found in sys.modules after import", RuntimeWarning)  # of what was forked
    sys.argv = ["fastcap", *arguments]
    runpy.run_module("fastcap.cli", run_name="__main__", alter_sys=True)


def start(folder, *arguments, name="output.txt", **environment):
    """Start a command in ``folder``; its output goes to the file ``name`` there."""
    process = context().Process(target=_run, args=(folder, list(arguments), environment, folder / name))
    process.start()
    process.output = folder / name
    return process


def end(process, seconds=1200):
    """Wait for a command; returns its status and output."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"no end after {seconds} s: {process.output.read_text()[-2000:]}")
    return process.exitcode, process.output.read_text()


def run(folder, *arguments, **environment):
    """Run a command to its end; returns its status and output."""
    return end(start(folder, *arguments, **environment))


def train(folder, *arguments, **environment):
    """Run ``fastcap train`` to its end; returns its status and output."""
    return run(folder, "train", *arguments, **environment)
