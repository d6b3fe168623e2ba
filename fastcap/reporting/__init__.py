"""Pictures, pages and tables of what a captioner did."""

from fastcap.reporting.captions import draw_captions
from fastcap.reporting.curve import SpeedPoint, draw_curve
from fastcap.reporting.draw_refinement import draw_refinement
from fastcap.reporting.evaluation import Evaluation, Speed, write_page
from fastcap.reporting.runs import Run, RunFolderError, find_runs
from fastcap.reporting.runs_page import write_runs_page
from fastcap.reporting.scores import ScoredCaption, score_captions, write_scores
from fastcap.reporting.trace import RefinementTrace, trace_refinement, write_traces

__all__ = [
    "Evaluation",
    "RefinementTrace",
    "Run",
    "RunFolderError",
    "ScoredCaption",
    "Speed",
    "SpeedPoint",
    "draw_captions",
    "draw_curve",
    "draw_refinement",
    "find_runs",
    "score_captions",
    "trace_refinement",
    "write_page",
    "write_runs_page",
    "write_scores",
    "write_traces",
]
