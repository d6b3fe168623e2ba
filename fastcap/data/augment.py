"""What chance changes in training images; the chance itself comes from the caller."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def crop(images: Tensor, scale: float, sides: np.ndarray, tops: np.ndarray, lefts: np.ndarray) -> None:
    """Cut a square out of each image, in place, and zoom it to the image's size.

    Args:
        images: Pixels, uint8. (B, 3, S, S)
        scale: Least share of the area that a crop keeps; 1 crops nothing.
        sides: Uniform numbers in [0, 1) that settle each crop's side. (B,)
        tops: Likewise its distance from the top. (B,)
        lefts: Likewise from the left. (B,)
    """
    if scale >= 1:
        return
    size, least = images.shape[-1], math.sqrt(scale)
    widths = np.rint((least + (1 - least) * sides) * size).astype(int).clip(1, size)
    rows, columns = (np.floor(shift * (size - widths + 1)).astype(int) for shift in (tops, lefts))
    for i, (width, top, left) in enumerate(zip(widths.tolist(), rows.tolist(), columns.tolist(), strict=True)):
        images[i] = zoom(images[i : i + 1, :, top : top + width, left : left + width], size)[0]


def zoom(window: Tensor, size: int) -> Tensor:
    """Resize uint8 pixels; torch's fast path wants the channels last (5 times grid_sample's speed at 128 px)."""
    window = window.contiguous(memory_format=torch.channels_last)
    return F.interpolate(window, (size, size), mode="bilinear", align_corners=False)
