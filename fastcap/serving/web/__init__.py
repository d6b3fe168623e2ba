"""The demo page and its HTTP API around a captioner; needs the extra ``demo``."""

from fastcap.serving.web.app import create_app
from fastcap.serving.web.uploads import Limits

__all__ = ["Limits", "create_app"]
