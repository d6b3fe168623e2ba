"""Caption scores (BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE) and faults of captions; CIDEr-D as a reward."""

from fastcap.metrics.caption import CaptionMetrics
from fastcap.metrics.reward import CiderReward
from fastcap.metrics.text import caption_faults, count_lengths

__all__ = ["CaptionMetrics", "CiderReward", "caption_faults", "count_lengths"]
