"""A run that a signal stops: its step is finished and saved, and its Slurm job queued again.

Lightning's own handlers save in the middle of whatever step they meet; what goes on from there is another run than the
unbroken one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

EXIT_STATUS = 75  # EX_TEMPFAIL: not done, try again


class Preempted(BaseException):
    """A run that a signal stopped, after it was saved; no failure, so nothing that handles failures may catch it.

    Attributes:
        signal: The signal; None in processes that were told by another one.
        checkpoint: Where the run goes on from.
    """

    def __init__(self, received: signal.Signals | None, checkpoint: str, step: int) -> None:
        name = received.name if received else "a signal to another process"
        super().__init__(f"stopped by {name} after step {step}, saved in {checkpoint}: resume=last goes on from there")
        self.signal = received
        self.checkpoint = checkpoint


class StopSignal:
    """Remember SIGTERM or SIGUSR1 until a step is done, while ``watch`` is on.

    Lightning's own handlers save in the middle of whatever step they meet; they are set aside. One that was there
    before (submitit's, which puts sweeps' jobs in the queue again) stays.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._free: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}

    def setup(self) -> None:
        """See which signals nobody handles yet; to be called before Lightning sets its handlers."""
        main = threading.current_thread() is threading.main_thread()
        self._free = [number for number in self.SIGNALS if main and signal.getsignal(number) == signal.SIG_DFL]

    def watch(self) -> None:
        """Start to handle them."""
        for number in self._free:
            self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Hand them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


@contextmanager
def exit_if_preempted() -> Iterator[None]:
    """End the process with ``EXIT_STATUS`` where a signal stopped the run, in Slurm's queue again after SIGUSR1.

    SIGUSR1 is what ``--signal`` sends before the time limit; pre-emption (SIGTERM) queues the job by itself.
    """
    try:
        yield
    except Preempted as stop:
        if getattr(rank_zero_only, "rank", 0) != 0:
            sys.exit(0)  # else Lightning would kill the first process, which still has something to do
        print(f"fastcap: {stop}", file=sys.stderr)
        if stop.signal == signal.SIGUSR1:
            requeue()
        sys.exit(EXIT_STATUS)


def requeue() -> bool:
    """Put this Slurm job in the queue again (``scontrol requeue``); False where that is not possible."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("scontrol requeue %s failed: %s", job, getattr(error, "stderr", None) or error)
        return False
    log.info("Slurm job %s is in the queue again", job)
    return True
