"""The demo page and its HTTP API around a captioner; needs the extra ``demo``."""

from fastcap.web.app import create_app
from fastcap.web.limits import Limits

__all__ = ["Limits", "create_app"]
