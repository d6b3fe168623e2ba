"""A disk that is full or read-only, and a machine that is taken away: said in one line, nothing lost."""

import os
import signal
import subprocess
from contextlib import contextmanager

import pytest
import torch

from tests.training.command import QUICK, train
from tests.training.killer import FILLER
from tests.training.test_kills import assert_same_run


@contextmanager
def small_disk(folder):
    """A disk of 64 MB at ``folder``, where that may be made; else the folder as it is."""
    folder.mkdir(parents=True)
    made = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    )
    try:
        yield made
    finally:
        while os.path.ismount(folder):
            subprocess.run(["umount", "-l", folder], check=True)


def _step(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


FULL = "No space left on device|File too large"
READ_ONLY = "Read-only file system|Permission denied"


@pytest.mark.parametrize(
    ("moment", "reason"), [("full:3", FULL), pytest.param("readonly:3", READ_ONLY, marks=pytest.mark.slow)]
)
def test_a_checkpoint_that_cannot_be_written(tmp_path, whole, moment, reason):
    run = tmp_path / "run"
    with small_disk(run) as made:
        if moment.startswith("readonly") and os.geteuid() == 0 and not made:
            pytest.skip("root may write anywhere, and no disk can be mounted here")
        status, output = train(tmp_path, *QUICK, KILL=moment)
        assert status == 2, output[-2000:]
        line = next(line for line in output.splitlines() if line.startswith("fastcap: error:"))
        assert f"{run}/checkpoints/last.ckpt" in line and any(words in line for words in reason.split("|"))
        assert "Traceback" not in output
        assert _step(run) == 3, "the first checkpoint within the epoch"
        if os.geteuid() == 0 and moment.startswith("readonly"):
            subprocess.run(["umount", run], check=True)
        elif moment.startswith("readonly"):
            os.chmod(run / "checkpoints", 0o700)
        (run / FILLER).unlink(missing_ok=True)
        status, output = train(tmp_path, *QUICK)
        assert status == 0, output[-2000:]
        assert_same_run(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_stops_between_steps(tmp_path, whole, name):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "fastcap", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "localhost"}
    environment = {**slurm, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    settings = [s for s in QUICK if "every_n_steps=2" not in s or "log" in s]  # checkpoints at the end of epochs only
    for step in (1, 3) if name == "SIGTERM" else (3,):
        status, output = train(tmp_path, *settings, KILL=f"{name}:{step}", **environment)
        assert status == 75, output[-2000:]
        assert f"stopped by {name} after step" in output and "resume=last" in output and "Traceback" not in output
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 42\n" if name == "SIGUSR1" else "")
    status, output = train(tmp_path, *settings, **environment)
    assert status == 0, output[-2000:]
    assert_same_run(whole, tmp_path / "run")
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))


@pytest.mark.parametrize(
    ("step", "advice"),
    [(4, "resume=last goes on from {}"), pytest.param(1, "nothing was saved yet", marks=pytest.mark.slow)],
)
def test_ctrl_c_says_how_to_go_on(tmp_path, step, advice):
    status, output = train(tmp_path, *QUICK, KILL=f"SIGINT:{step}")
    said = f"fastcap: interrupted after step {step - 1}: {advice.format(tmp_path / 'run/checkpoints/last.ckpt')}"
    assert status == 130 and output.splitlines()[-1] == said, output[-2000:]
    assert "Traceback" not in output


def test_a_handler_that_is_there_already_stays():
    from fastcap.training.saving import StopSignal

    stop, seen = StopSignal(), []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("theirs"))
    free = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever earlier tests left there
    try:
        stop.setup()
        stop.watch()
        signal.raise_signal(signal.SIGUSR1)
        assert seen == ["theirs"] and stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        stop.release()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        stop.release()
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGTERM, free)
