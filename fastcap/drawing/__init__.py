"""Pictures of what a captioner does, drawn without a display: captions, refinement step by step, speed and quality."""

from fastcap.drawing.captions import draw_captions
from fastcap.drawing.curve import SpeedPoint, draw_curve
from fastcap.drawing.refinement import draw_refinement
from fastcap.drawing.trace import RefinementTrace, trace_refinement, write_traces

__all__ = [
    "RefinementTrace",
    "SpeedPoint",
    "draw_captions",
    "draw_curve",
    "draw_refinement",
    "trace_refinement",
    "write_traces",
]
