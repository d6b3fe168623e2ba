"""Search in sorted tables, in eager torch and in graphs that are exported."""

from __future__ import annotations

import torch
from torch import Tensor


def find(table: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Look ids up in an ascending table that is not empty.

    Args:
        table: Ids in ascending order. (n,)
        wanted: Ids to look up, of any shape.

    Returns:
        The place of each id, and whether it is there; where it is not, the place means nothing. Shape of ``wanted``.
    """
    last, flat = table.shape[0] - 1, wanted.flatten()
    if torch.compiler.is_exporting():  # ONNX has no searchsorted: a binary search, unrolled
        place = torch.zeros_like(flat, dtype=torch.long)
        for bit in reversed(range(last.bit_length())):
            further = (place + (1 << bit)).clamp(max=last)
            place = torch.where(table.index_select(0, further) <= flat, further, place)
    else:
        place = torch.searchsorted(table, flat.to(table.dtype)).clamp_(max=last)
    known = table.index_select(0, place) == flat
    return place.view(wanted.shape), known.view(wanted.shape)


def take(table: Tensor, place: Tensor) -> Tensor:
    """Read a table, (n,), at places of any shape."""
    return table.index_select(0, place.flatten()).view(place.shape)
