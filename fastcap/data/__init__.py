"""Captioned images: reading them, turning words into ids, and batches.

``fastcap.data.datamodule`` holds the Lightning data module and ``fastcap.data.scenes`` the drawn data set; they are
imported from there. The names below are loaded when first used, so that decoding one photograph loads neither torch nor
a tokenizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcap.data.coco import CocoCaptions, CocoRecords
    from fastcap.data.errors import DataError
    from fastcap.data.pixels import PixelCache, decode_image
    from fastcap.data.tokenizer import CaptionTokenizer

__all__ = ["CaptionTokenizer", "CocoCaptions", "CocoRecords", "DataError", "PixelCache", "decode_image"]
_MODULES = {"CaptionTokenizer": "tokenizer", "CocoCaptions": "coco", "CocoRecords": "coco", "DataError": "errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'pixels')}"), name)
