"""A linear layer of low rank in the place of a trained one, nearest to it on the inputs that it met."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_IMPORTANCE = 1e-4  # of an output against the most important one: none is given up altogether


def note_products(products: Tensor, inputs: Tensor, decay: float = 0.99) -> None:
    """Add a batch of inputs to running sums of products, in place; older batches fade.

    Args:
        products: Sums of [x, 1]^T [x, 1], zeros to begin with. (J + 1, J + 1)
        inputs: A batch. (B, J)
        decay: What is kept of earlier sums at each batch.
    """
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        rows = F.pad(inputs.detach().to(products.dtype), (0, 1), value=1.0)
        products.mul_(decay).addmm_(rows.mT, rows)


def factorise(
    weight: Tensor, bias: Tensor, products: Tensor, importance: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find matrices A, B and a bias c so that A B x + c is nearest to W x + b on the average input.

    The outputs' principal components over the inputs met, instead of the singular values of W alone, which count
    directions that inputs hardly take (DRONE, Chen et al., NeurIPS 2021; SVD-LLM, arXiv 2403.07378).

    Args:
        weight: W. (O, J)
        bias: b. (O,)
        products: From ``note_products`` over the inputs. (J + 1, J + 1)
        importance: How much each output's squared error counts. (O,)
        rank: Rank R of what is found; zeros fill up what is above J and O.

    Returns:
        B (R, J), A (O, R) and c (O,), of W's type.

    Raises:
        ValueError: If no inputs were noted, or the rank is below one.
    """
    if rank < 1:
        raise ValueError(f"a rank of {rank} is below one")
    if not products[-1, -1] > 0:
        raise ValueError("no inputs were noted")
    exact = weight.double()
    moments = products.double() / products[-1, -1].double()
    mean = moments[:-1, -1]
    variances, directions = torch.linalg.eigh(moments[:-1, :-1] - mean.outer(mean))
    spread = directions * variances.clamp(min=0.0).sqrt()
    scale = (importance.double() / importance.max()).clamp(min=_LEAST_IMPORTANCE).sqrt().unsqueeze(1)
    axes = torch.linalg.svd(scale * exact @ spread, full_matrices=False).U[:, :rank]
    axes = F.pad(axes, (0, rank - axes.shape[1]))
    inner, outer = axes.mT @ (scale * exact), axes / scale
    shift = bias.double() + exact @ mean - outer @ (inner @ mean)
    return inner.to(weight.dtype), outer.to(weight.dtype), shift.to(weight.dtype)
