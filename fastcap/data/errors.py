"""What bad input data turns into: one clear error, or one line in the log."""

from __future__ import annotations

import logging
import os

from fastcap.utils.errors import UserError

_LOG = logging.getLogger("fastcap.data")


class DataError(UserError, ValueError):
    """Bad input data; the message names the file and field."""


class Skipped:
    """Counts what a real run leaves out, with the first example of each kind, for one log line."""

    def __init__(self, subject: str) -> None:
        """Start an empty tally of what is left out of ``subject``."""
        self.subject = subject
        self.counts: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one thing left out; ``example`` is kept when it is the first of its kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, example)

    def __str__(self) -> str:
        """Every kind with its count and first example."""
        parts = (f"{count} {kind} (first: {self.examples[kind]})" for kind, count in self.counts.items())
        return f"{self.subject}: left out {'; '.join(parts)}"

    def report(self) -> None:
        """Write the tally as one warning, from the first process only; nothing when all was used."""
        if self.counts:
            log_once(str(self), logging.WARNING)


def log_once(message: str, level: int = logging.INFO) -> None:
    """Log ``message`` from the first process of a distributed run only."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    if rank == "0":
        _LOG.log(level, message.encode("utf-8", "backslashreplace").decode())  # names may hold lone surrogates
