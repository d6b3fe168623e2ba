"""Captioned images: finding and decoding them, turning words into ids, and batches.

What is named here, ``pixels`` and ``image_files`` need numpy and Pillow alone, so that captioning with an exported
model loads neither torch nor a tokenizer's library.
"""

from fastcap.data.coco import CocoCaptions
from fastcap.data.errors import DataError
from fastcap.data.pixels import decode_image

__all__ = ["CocoCaptions", "DataError", "decode_image"]
