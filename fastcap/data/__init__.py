"""Captioned images: reading them, turning words into ids, and batches.

``fastcap.data.datamodule`` holds the Lightning data module and ``fastcap.data.scenes`` the drawn data set; they are
imported from there, so that decoding one photograph does not load Lightning.
"""

from fastcap.data.coco import CocoCaptions, CocoRecords
from fastcap.data.errors import DataError
from fastcap.data.pixels import PixelCache, decode_image
from fastcap.data.tokenizer import CaptionTokenizer

__all__ = ["CaptionTokenizer", "CocoCaptions", "CocoRecords", "DataError", "PixelCache", "decode_image"]
