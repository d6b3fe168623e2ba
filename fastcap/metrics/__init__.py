"""Caption scores (BLEU, ROUGE-L, CIDEr-D, METEOR) and faults of captions; CIDEr-D as a reward."""

from fastcap.metrics.caption import CaptionMetrics, CaptionScores, caption_faults, count_lengths
from fastcap.metrics.ngrams import CiderD

__all__ = ["CaptionMetrics", "CaptionScores", "CiderD", "caption_faults", "count_lengths"]
