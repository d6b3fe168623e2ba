"""What bad input data turns into: one clear error, or one line that says what was left out."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter

from fastcap.utils.errors import UserError

MAX_SKIPPED = 0.05  # share of a split's images that may be left out, where no setting says otherwise
_INTERVAL = 15.0  # seconds between two lines on how far work has come
_LOG = logging.getLogger("fastcap.data")


class DataError(UserError, ValueError):
    """Bad input data; the message names the file and field."""


class Skipped:
    """Counts what is left out of ``subject``, with the first example of each reason, for one line."""

    def __init__(self, subject: str) -> None:
        self.subject, self.counts, self.examples = subject, Counter[str](), dict[str, str]()  # by reason

    @property
    def total(self) -> int:
        """How many were left out, whatever the reason."""
        return self.counts.total()

    def add(self, reason: str, example: object) -> None:
        """Count one thing left out; ``example`` is kept when it is the first of its reason."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, str(example))

    def merge(self, other: Skipped) -> None:
        """Count what another one counted."""
        self.counts += other.counts
        self.examples = other.examples | self.examples

    def __str__(self) -> str:
        parts = (f"{count} {reason} (first: {self.examples[reason]})" for reason, count in self.counts.items())
        return f"{self.subject}: left out {'; '.join(parts)}"

    def report(self) -> None:
        """Log one line, from the first process only; nothing when all was used."""
        if self.counts:
            log_once(str(self), logging.WARNING)

    def check(self, num_all: int, max_share: float, before: int = 0) -> None:
        """Report, and refuse to go on where too much is left out.

        Args:
            num_all: How many there were.
            max_share: Share of them that may be left out.
            before: How many were left out already.

        Raises:
            DataError: If more is left out, or all.
        """
        self.report()
        total = self.total + before
        if self.counts and (total > max_share * num_all or total == num_all):
            raise DataError(
                f"{self}: {total} of {num_all} altogether, and max_skipped={max_share:g} of them may be left out"
            )


class ProgressLog:
    """Logs how far long work has come, now and then: items done, rate, time left."""

    def __init__(self, task: str, total: int) -> None:
        """Start the clock of ``task`` ("train: decoded", say) over ``total`` items."""
        self.task, self.total = task, total
        self.start = self.last = time.monotonic()

    def update(self, done: int) -> None:
        """Log a line where it is time for one."""
        now = time.monotonic()
        if done and now - self.last >= _INTERVAL:
            self.last, rate = now, done / (now - self.start)
            left = (self.total - done) / rate / 60
            log_once(f"{self.task} {done} of {self.total} images, {rate:.1f} images/s, {left:.1f} minutes left")

    def finish(self) -> None:
        """Log how long everything took."""
        seconds = time.monotonic() - self.start
        log_once(f"{self.task} {self.total} images in {seconds:.0f} s, {self.total / max(seconds, 1e-9):.1f} images/s")


def log_once(message: str, level: int = logging.INFO) -> None:
    """Log ``message`` from the first process of a distributed run only."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    if rank == "0":
        _LOG.log(level, message.encode("utf-8", "backslashreplace").decode())  # names may hold lone surrogates
