"""One-file HTML pages that open without a network: an evaluation, and the comparison of runs."""

from fastcap.report.evaluation import Evaluation, Speed, write_page
from fastcap.report.runs import Run, RunFolderError, find_runs
from fastcap.report.runs_page import write_runs_page
from fastcap.report.scores import ScoredCaption, score_captions, write_scores

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
