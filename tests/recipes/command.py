"""Stages of a recipe as processes forked from one that has imported everything: no ten seconds each."""

import os
import runpy
import sys
from multiprocessing import forkserver
from pathlib import Path

from tests.tiny import TINY
from tests.training.command import context

NOT_FOR_FILES = ("data.source.num_", "~callbacks.progress", "callbacks.speed_quality", "callbacks.refinement")


def settings(root):
    """Overrides of a tiny run on a caption set in COCO's format."""
    names = {split: f"annotations/captions_{split}.json" for split in ("train", "val")}
    return [
        *(text for text in TINY if not text.startswith(NOT_FOR_FILES)),
        "data=coco",
        f"data.source.root={root}",
        *(f"data.source.annotations.{split}={name}" for split, name in names.items()),
        "data.num_workers=0",
        "decoder=moe_mini",
        "metrics.tokenizer=simple",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2",
        "callbacks.samples=null",
        "callbacks.refinement=null",
        "callbacks.speed_quality=null",
        "callbacks.progress=null",
        "+callbacks.killer._target_=tests.training.killer.Killer",
    ]


def _run(folder, module, arguments, environment, output):
    os.chdir(folder)
    os.environ.update(environment)
    file = open(output, "a", buffering=1)  # noqa: SIM115  # until the process ends
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    sys.argv = ["fastcap", *arguments]
    runpy.run_module(f"fastcap.{module}", run_name="__main__", alter_sys=True)


def start_server():
    """Start the process that others are forked from."""
    context()
    forkserver.ensure_running()


class Forked:
    """A recipe's runner: remembers the stages that it ran; those named in ``kill`` get ``KILL`` once."""

    def __init__(self, output, **kill):
        self.output, self.kill, self.stages = Path(output), kill, []

    def __call__(self, command):
        place = command[-1].removeprefix("hydra.run.dir=")
        name = Path(place).name.partition("_")[2]
        self.stages.append(name)
        environment = {"KILL": self.kill.pop(name, "none:0"), "COLUMNS": "200", "FASTCAP_TRUST": "tests"}
        arguments = (os.getcwd(), command[0], command[1:], environment, self.output)
        process = context().Process(target=_run, args=arguments)
        process.start()
        process.join(300)
        assert process.exitcode is not None, self.output.read_text()[-2000:]
        return process.exitcode
