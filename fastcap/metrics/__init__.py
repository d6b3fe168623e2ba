"""Caption scores (BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE) and faults of captions."""

from fastcap.metrics.caption import CaptionMetrics
from fastcap.metrics.text import caption_faults

__all__ = ["CaptionMetrics", "caption_faults"]
