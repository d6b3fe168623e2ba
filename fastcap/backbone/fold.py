"""Fold batch norms and lay out weights of a trained backbone, for inference."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastcap.utils.prepacking import PACKABLE, followers, pack_layers, replace

_TOLERANCE = 1e-4  # of the features' norm: folding and packing round differently, no more


def prepare_for_inference(
    backbone: nn.Module, image_size: int, pack: Collection[type[nn.Module]] = PACKABLE
) -> nn.Module:
    """Return a backbone's copy that computes the same, on CPUs up to twice as fast at batch 1.

    Which layers follow which is seen by running it once on noise; a second run compares the copy with the original.
    The copy cannot be trained, and its state no longer fits a checkpoint.

    Args:
        backbone: In evaluation mode.
        image_size: Side of the images to expect, in pixels; others work too.
        pack: Kinds of layers whose weights are laid out for this machine too; with none the copy can be exported.

    Returns:
        The copy; or the backbone itself where the two disagree.

    Raises:
        ValueError: If the backbone is in training mode.
    """
    if backbone.training:
        raise ValueError("batch norms are folded for inference: call eval() first")
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    prepared = copy.deepcopy(backbone)
    with torch.inference_mode():
        expected = backbone(images)
    with torch.no_grad():
        fold_batch_norms(prepared, images)
        if pack:
            pack_layers(prepared, lambda: prepared(images), pack)
        error = (prepared(images) - expected).norm() / expected.norm()
    return prepared if bool(error < _TOLERANCE) else backbone


def fold_batch_norms(module: nn.Module, images: Tensor) -> int:
    """Fold, in place, every BatchNorm2d whose input is a Conv2d's output.

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
    pairs = followers(module, lambda: module(images), nn.Conv2d, nn.BatchNorm2d)
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        replace(module, norm, getattr(norm, "act", nn.Identity()))
    return len(pairs)
