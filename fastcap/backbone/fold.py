"""BatchNorm folded into the convolution before it: the same function in evaluation, one pass over the pixels less."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> int:
    """Fold, in place, every BatchNorm2d that directly follows a Conv2d in an ``nn.Sequential``.

    For inference only: the folded module cannot be trained on, and its state no longer fits a checkpoint.

    Args:
        module: A module in evaluation mode, or any that holds such layers.

    Returns:
        How many were folded.

    Raises:
        ValueError: If the module is in training mode.
    """
    if module.training:
        raise ValueError("batch norms are folded for inference: call eval() first")
    folded = 0
    for layers in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        for (name, convolution), (norm_name, norm) in pairwise(list(layers.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers.add_module(name, fuse_conv_bn_eval(convolution, norm))
                layers.add_module(norm_name, nn.Identity())
                folded += 1
    return folded
