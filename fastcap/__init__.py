"""FastCap: non-autoregressive image captioning, trained and served on ordinary CPUs.

from fastcap import Captioner
print(Captioner.load().caption("photo.jpg").text)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcap.serving.captioner import Caption, Captioner

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("Caption", "Captioner"):  # at first use: a command's own imports come first
        from fastcap.serving import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
