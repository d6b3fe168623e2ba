"""Building blocks of a page: templates, plots and pictures, all of them inside the one file."""

from __future__ import annotations

import base64
import io
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

import fastcap

JPEG_QUALITY = 82


def write_html(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this room and write the page at once, so that a failure leaves no half of it.

    Args:
        path: The HTML file.
        template: Name of a file in ``templates``.
        **values: What the template asks for; text is escaped, a missing value is an error.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(
        plotly=Markup(get_plotlyjs()),
        version=fastcap.__version__,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **values,
    )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8", errors="replace")
    os.replace(partial, path)


def data_uri(picture: np.ndarray | Image.Image, side: int) -> str:
    """Encode a picture as a JPEG data URI, shrunk so that neither side is longer than ``side`` pixels.

    Args:
        picture: RGB pixels, uint8 (H, W, 3), or a Pillow image.
        side: Longest side, in pixels.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
