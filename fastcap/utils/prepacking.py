"""Layers whose weights oneDNN lays out once for this CPU instead of at every call; inference in fp32 only.

A product of few rows spends most of its time on laying the weights out; packed, it takes about half the time. The
activation that follows is applied as the output is written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Activations that oneDNN applies as it writes an output: name, arguments, algorithm.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, list[float], str]]] = {
    nn.ReLU: lambda _: ("relu", [], ""),
    nn.ReLU6: lambda layer: ("hardtanh", [layer.min_val, layer.max_val], ""),
    nn.Hardtanh: lambda layer: ("hardtanh", [layer.min_val, layer.max_val], ""),
    nn.SiLU: lambda _: ("swish", [], ""),
    nn.GELU: lambda layer: ("gelu", [], layer.approximate),
}
PACKABLE: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
_NO_ACTIVATION: tuple[str, list[float], str] = ("none", [], "")
_MIN_ROWS = 4  # of a linear layer's input, and columns of its output: with fewer there is next to nothing to multiply


def pack_layers(module: nn.Module, run: Callable[[], Any], kinds: Collection[type[nn.Module]] = PACKABLE) -> int:
    """Replace, in place, every Conv2d and Linear that a run passes through by a packed one.

    An activation is taken into the layer whose output it alone reads. What reads it without being a layer goes unseen,
    so compare the module's results before and after. Linear layers of less than four rows or columns stay.

    Args:
        module: In evaluation mode.
        run: Runs the module once, on inputs of the sizes to expect; others will work too.
        kinds: Of these two, those to replace.

    Returns:
        How many were replaced; none where oneDNN cannot take them all.
    """
    kinds = tuple(kinds)
    follows: dict[Any, Any] = {}
    # One run shows both: what follows what, and the inputs' shapes.
    shapes = _input_shapes(module, lambda: follows.update(followers(module, run, kinds, tuple(_ACTIVATIONS))), kinds)
    if not all(_packable(layer) for layer in shapes):
        return 0
    for layer, shape in shapes.items():
        activation = follows.get(layer)
        packed: nn.Module = (
            PackedConv2d(layer, activation, shape)
            if isinstance(layer, nn.Conv2d)
            else PackedLinear(layer.weight, layer.bias, activation, _rows(shape))
        )
        replace(module, layer, packed)
        if activation is not None:
            replace(module, activation, nn.Identity())
    return len(shapes)


class PackedLinear(nn.Module):
    """A linear layer whose weights oneDNN has laid out once.

    Args:
        weight: (out, in)
        bias: (out,), or None.
        activation: What follows, one of ReLU, ReLU6, Hardtanh, SiLU, GELU, or None.
        rows: Rows of the input to lay the weights out for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: nn.Module | None, rows: int) -> None:
        super().__init__()
        self.activation = _describe(activation)
        self.bias = None if bias is None else bias.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and activate. (..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, *self.activation)


class PackedConv2d(nn.Module):
    """A convolution whose weights oneDNN has laid out once.

    Args:
        convolution: What to replace; timm's ``Conv2dSame`` pads by TensorFlow's rule.
        activation: What follows, one of ReLU, ReLU6, Hardtanh, SiLU, GELU, or None.
        input_size: Shape of the input to lay the weights out for. (B, C, H, W)
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None, input_size: torch.Size) -> None:
        super().__init__()
        self.same = type(convolution).__name__ == "Conv2dSame"
        self.kernel_size, self.stride = convolution.kernel_size, list(convolution.stride)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.padding = [0, 0] if self.same else [int(side) for side in convolution.padding]
        self.activation = _describe(activation)
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            convolution.weight.detach(), self.padding, self.stride, self.dilation, self.groups, list(input_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and activate. (B, C, H, W) -> (B, C', H', W')."""
        if self.same:
            x = self._pad_same(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, *self.activation
        )

    def _pad_same(self, x: Tensor) -> Tensor:
        total = []
        for side, kernel, stride, dilation in zip(
            reversed(x.shape[2:]),
            reversed(self.kernel_size),
            reversed(self.stride),
            reversed(self.dilation),
            strict=True,
        ):
            missing = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            total += [missing // 2, missing - missing // 2]
        return F.pad(x, total) if any(total) else x


def packs(tensor: Tensor) -> bool:
    """Tell whether oneDNN's operators exist here and take such weights."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
    )


def followers(
    module: nn.Module,
    run: Callable[[], Any],
    first: type[nn.Module] | tuple[type[nn.Module], ...],
    second: type[nn.Module] | tuple[type[nn.Module], ...],
) -> list[tuple[Any, Any]]:
    """Run a module and list pairs of layers where the first's output is the second's input, every time and only there.

    Args:
        module: The module.
        run: Runs it.
        first: Kinds of layers that make an output.
        second: Kinds of layers that may take it in.
    """
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}  # tensors are kept: an id is not given twice
    calls: Counter[nn.Module] = Counter()
    sources: defaultdict[nn.Module, Counter[nn.Module | None]] = defaultdict(Counter)

    def after(layer: nn.Module, _: Any, output: Tensor) -> None:
        calls[layer] += 1
        made[id(output)] = (layer, output, output._version)

    def before(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        source = made.get(id(given[0]))
        unchanged = source is not None and source[2] == given[0]._version  # nothing was added to it in place
        sources[layer][source[0] if source and unchanged else None] += 1

    hooks: list[Any] = []
    for layer in module.modules():
        if isinstance(layer, first):
            hooks.append(layer.register_forward_hook(after))
        elif isinstance(layer, second):
            hooks.append(layer.register_forward_pre_hook(before))
    _run_once(run, hooks)
    pairs = [(next(iter(found)), layer) for layer, found in sources.items() if len(found) == 1]
    readers = Counter(source for found in sources.values() for source in found)
    return [(a, b) for a, b in pairs if a is not None and readers[a] == 1 and sources[b][a] == calls[a]]


def replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a layer in another's place, wherever the module holds it."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


def _input_shapes(
    module: nn.Module, run: Callable[[], Any], kinds: tuple[type[nn.Module], ...]
) -> dict[Any, torch.Size]:
    """Run a module and note the smallest input of each layer that is worth packing."""
    shapes: dict[Any, torch.Size] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        before = shapes.get(layer)
        if before is None or given[0].numel() < before.numel():
            shapes[layer] = given[0].shape

    # Subclasses of Linear may do more than multiply.
    found = [m for m in module.modules() if isinstance(m, kinds)]
    layers = [m for m in found if isinstance(m, nn.Conv2d) or type(m) is nn.Linear]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    _run_once(run, hooks)
    return {k: v for k, v in shapes.items() if isinstance(k, nn.Conv2d) or min(_rows(v), k.out_features) >= _MIN_ROWS}


def _run_once(run: Callable[[], Any], hooks: list[Any]) -> None:
    """Run with hooks in place, and take them away again."""
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()


def _rows(shape: torch.Size) -> int:
    return shape[:-1].numel()


def _packable(layer: Any) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    return packs(layer.weight)


def _describe(activation: nn.Module | None) -> tuple[str, list[float], str]:
    return _NO_ACTIVATION if activation is None else _ACTIVATIONS[type(activation)](activation)
