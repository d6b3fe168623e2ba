"""Fold the batch norms of a trained backbone into its convolutions, for inference."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_TOLERANCE = 1e-4  # of the features' norm: folding rounds differently, no more


def prepare_for_inference(backbone: nn.Module, image_size: int) -> nn.Module:
    """Return a backbone's copy that computes the same without batch norms.

    Which layers follow which is seen by running it once on noise; a second run compares the copy with the original.
    The copy cannot be trained, and its state no longer fits a checkpoint.

    Args:
        backbone: In evaluation mode.
        image_size: Side of the images to run it on, in pixels.

    Returns:
        The copy; or the backbone itself where the two disagree.

    Raises:
        ValueError: If the backbone is in training mode.
    """
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    prepared = copy.deepcopy(backbone)
    with torch.no_grad():
        fold_batch_norms(prepared, images)
        expected = backbone(images)
        error = (prepared(images) - expected).norm() / expected.norm()
    return prepared if bool(error < _TOLERANCE) else backbone


@torch.no_grad()
def fold_batch_norms(module: nn.Module, images: Tensor) -> int:
    """Fold, in place, every BatchNorm2d whose input is a Conv2d's output, where each of the two runs once.

    What reads the convolution's output without being a batch norm goes unseen: compare results before and after.

    Args:
        module: A backbone in evaluation mode.
        images: What to run it on once. (B, 3, H, W)

    Returns:
        How many were folded. timm's norms hold an activation too, which stays.

    Raises:
        ValueError: If the module is in training mode.
    """
    if module.training:
        raise ValueError("batch norms are folded for inference: call eval() first")
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # tensors are kept: an id is not given twice
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(layer: nn.Conv2d, _: object, output: Tensor) -> None:
        calls[layer] += 1
        made[id(output)] = layer, output

    def before_norm(layer: nn.BatchNorm2d, given: tuple[Tensor, ...]) -> None:
        calls[layer] += 1
        if id(given[0]) in made:
            pairs.append((made[id(given[0])][0], layer))

    hooks = [m.register_forward_hook(after_convolution) for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        module(images)
    finally:
        for hook in hooks:
            hook.remove()
    readers = Counter(convolution for convolution, _ in pairs)
    pairs = [(c, n) for c, n in pairs if calls[c] == calls[n] == readers[c] == 1]
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        for parent in module.modules():
            for name, child in parent.named_children():
                if child is norm:
                    setattr(parent, name, getattr(norm, "act", nn.Identity()))
    return len(pairs)
