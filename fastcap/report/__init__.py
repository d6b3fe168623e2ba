"""One-file HTML pages that open without a network: an evaluation, and the comparison of runs."""

from fastcap.report.evaluation import Evaluation, ScoredCaption, Speed, score_captions, write_page, write_scores
from fastcap.report.runs import Run, RunFolderError, find_runs
from fastcap.report.runs_page import write_runs_page

__all__ = [
    "Evaluation",
    "Run",
    "RunFolderError",
    "ScoredCaption",
    "Speed",
    "find_runs",
    "score_captions",
    "write_page",
    "write_runs_page",
    "write_scores",
]
