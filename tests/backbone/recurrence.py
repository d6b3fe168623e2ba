"""The cross-scan by its recurrence, token by token: what ``grid_scan`` is compared with."""

import torch

from fastcap.backbone.scan import scan_reference

DIRECTIONS = ["right", "left", "down", "up"]


def _visits(direction, height, width):
    """Raster indices in the order in which a direction comes to them."""
    raster = torch.arange(height * width).view(height, width)
    walk = (raster if direction in ("right", "left") else raster.t()).flatten()
    return walk if direction in ("right", "down") else walk.flip(0)


def grid_scan_reference(x, log_decay, b, c):
    """Each direction's heads through the recurrence, token by token, in that direction's order."""
    batch, height, width, heads, channels = x.shape
    x, log_decay, b, c = (t.flatten(1, 2) for t in (x, log_decay, b, c))
    outputs = []
    for index, direction in enumerate(DIRECTIONS):
        visits, share = _visits(direction, height, width), slice(index * heads // 4, (index + 1) * heads // 4)
        walked = (x[:, visits, share], log_decay[:, visits, share], b[:, visits, None], c[:, visits, None])
        y = scan_reference(*walked)
        outputs.append(y[:, visits.argsort()])
    return torch.cat(outputs, dim=2).view(batch, height, width, heads, channels)
