"""Sweeps that can be called again: jobs named by their values, skipped when finished, continued when stopped."""

from fastcap.sweeping.folders import swept_first
from fastcap.sweeping.jobs import run_job
from fastcap.sweeping.summary import SweepSummary

__all__ = ["SweepSummary", "run_job", "swept_first"]
