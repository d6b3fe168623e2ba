"""Any encoder of the timm library as a backbone: its feature maps or tokens, by name, with a local weights file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import Permute

from fastcap.backbone.scan import GridPosition
from fastcap.types import IMAGE_MEAN, IMAGE_STD

INSTALL = "pip install -c constraints.txt -e '.[train]'"
_TOLERANCE = 1e-4  # of the features' norm: folding rounds differently, no more


class GridEncoder(nn.Module):
    """Base of encoders that give a grid of features: normalise its channels and add a position code.

    Subclasses define ``feature_map`` and ``frozen``, and call ``_finish`` once they know how wide it is.
    """

    frozen: Any
    norm: nn.BatchNorm2d | None
    position: GridPosition | None

    def _finish(self, feature_dim: int, norm: bool, position: bool) -> None:
        self.feature_dim = feature_dim
        self.norm = nn.BatchNorm2d(self.feature_dim) if norm else None
        self.position = GridPosition(self.feature_dim) if position else None

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute the features on their grid, without norm and position code. (B, 3, H, W) -> (B, h, w, D)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into patch features.

        Args:
            images: RGB, normalized with ImageNet's mean and deviation. (B, 3, H, W)

        Returns:
            Features in raster order. (B, N, D)
        """
        return self.from_map(self.feature_map(images))

    def from_map(self, features: Tensor) -> Tensor:
        """Do what comes after ``feature_map``, which a frozen net need compute only once. (B, h, w, D) -> (B, N, D)."""
        if self.norm is not None:
            features = self.norm(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.position is not None:
            features = self.position(features)
        return features.flatten(1, 2)


class TimmEncoder(GridEncoder):
    """Wrap a timm model: normalized images (B, 3, H, W) to features (B, N, feature_dim), class tokens left out.

    Args:
        name: A model of timm, e.g. ``resnet18`` or ``vit_small_patch16_224.augreg_in1k``.
        pretrained: File with its weights (.safetensors, .pth), or None for random ones. Nothing is downloaded.
        frozen: Keep the weights as they are: no gradients, and BatchNorm stays in eval mode.
        frozen_norms: Keep BatchNorm's statistics alone as they are: fine-tuning on small batches, and faster.
        position: Add a learned code of the grid position to the features (trained, even when the rest is frozen).
        levels: Earlier levels whose features stand beside the last layer's, finer grids with neighbours side by side
            (hypercolumns, Hariharan et al. 2015, arXiv 1411.5752): what a classifier has no use for any more, such
            as colours, textures and poses.
        norm: Normalize every channel (BatchNorm, trained even when the rest is frozen): levels differ in scale.
        options: Further arguments of ``timm.create_model``, e.g. ``dynamic_img_size: true`` of a ViT.
        pixel_mean: Mean that the model's pixels (0 to 1) are normalized with; None takes timm's for this name.
        pixel_std: Standard deviation likewise.

    Raises:
        ValueError: If timm is not installed, knows no such model, or the file does not fit it.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        frozen: bool = False,
        frozen_norms: bool = False,
        position: bool = True,
        levels: Sequence[int] = (),
        norm: bool = False,
        options: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.frozen, self.frozen_norms = name, frozen, frozen_norms
        self.levels = sorted(set(levels))
        self.net = create_net(name, options)
        if pretrained:
            self.load_pretrained(pretrained)
        expected = self.net.pretrained_cfg
        if self.levels and not hasattr(self.net, "forward_intermediates"):
            raise ValueError(f"backbone.levels: timm's {name} gives no intermediate features")
        self.net.reset_classifier(0, "")
        self._set_pixels(pixel_mean or expected["mean"], pixel_std or expected["std"])
        side = (options or {}).get("img_size") or expected.get("input_size", (3, 224, 224))[-1]
        self._finish(self._probe(side), norm, position)
        self.net.to(memory_format=torch.channels_last)  # convolutions: about twice as fast on CPUs
        if frozen:
            self.net.requires_grad_(False)
            self.net.eval()

    def load_pretrained(self, pretrained: Any) -> None:
        """Load the weights file; the classifier's share of it is passed over."""
        load_file(self.net, pretrained)

    def train(self, mode: bool = True) -> TimmEncoder:
        """Switch mode; a frozen net stays in eval mode, and so do frozen norms."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        elif self.frozen_norms:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def feature_map(self, images: Tensor) -> Tensor:
        """Compute the features, as ``GridEncoder.feature_map``."""
        with torch.no_grad() if self.frozen else nullcontext():
            pixels = images * self.pixel_scale + self.pixel_shift
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            aspect = images.shape[-2] / images.shape[-1]
            if not self.levels:
                return self._on_grid(self.net.forward_features(pixels), aspect)
            last, maps = self.net.forward_intermediates(pixels, indices=self.levels, output_fmt="NCHW")
            last = self._on_grid(last, aspect)
            return torch.cat([last, *(_beside(level, last) for level in maps)], dim=-1)

    def _on_grid(self, x: Tensor, aspect: float) -> Tensor:
        """Bring a map (either layout) or tokens with class tokens in front to (B, h, w, D)."""
        if x.ndim == 3:
            x = x[:, getattr(self.net, "num_prefix_tokens", 0) :]
            rows = round((x.shape[1] * aspect) ** 0.5)
            if rows * (x.shape[1] // max(rows, 1)) != x.shape[1]:
                raise ValueError(f"{self.name}: {x.shape[1]} tokens make no grid of the image's shape")
            return x.unflatten(1, (rows, -1))
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            return x
        return x.permute(0, 2, 3, 1)

    def _set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Fold both normalizations, ImageNet's undone and the model's applied, into one scale and shift."""
        given_mean, given_std, net_mean, net_std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD, mean, std)
        )
        self.register_buffer("pixel_scale", (given_std / net_std).float(), persistent=False)
        self.register_buffer("pixel_shift", ((given_mean - net_mean) / net_std).float(), persistent=False)

    def _probe(self, side: int) -> int:
        """Find the features' width, and freeze parameters that they do not depend on (of a head that timm leaves).

        Runs a copy on torch's meta device, which computes shapes only.
        """
        shadow = copy.deepcopy(self).to("meta").eval()
        shadow.frozen = False
        try:
            with torch.enable_grad():
                features = shadow.feature_map(torch.zeros(1, 3, side, side, device="meta"))
                features.sum().backward()
        except (AssertionError, IndexError) as error:
            if not self.levels:
                raise
            raise ValueError(f"backbone.levels = {self.levels}: timm's {self.name} has no such ({error})") from error
        for own, copied in zip(self.net.parameters(), shadow.net.parameters(), strict=True):
            own.requires_grad_(copied.grad is not None)
        return features.shape[-1]


def _beside(level: Tensor, last: Tensor) -> Tensor:
    """Lay a level's map on the last one's grid, r x r neighbours side by side. (B, C, H, W) -> (B, h, w, C * r * r)."""
    height, width = last.shape[1:3]
    ratio = max(round(level.shape[2] / height), 1)
    if level.shape[2:] != (height * ratio, width * ratio):  # sides that halve to odd numbers
        level = F.interpolate(level, (height * ratio, width * ratio), mode="bilinear")
    return level.permute(0, 2, 3, 1) if ratio == 1 else side_by_side(ratio)(level)


def side_by_side(ratio: int) -> nn.Sequential:
    """Make what lays r x r neighbours side by side: ``F.pixel_unshuffle`` and channels last, (B, h, w, C * r * r)."""
    # One axis is moved at a time: a tenth of the time in ONNX Runtime.
    rows = nn.Unflatten(2, (-1, ratio)), nn.Unflatten(1, (-1, ratio)), Permute([0, 1, 3, 2, 4, 5])
    return nn.Sequential(Permute([0, 2, 3, 1]), *rows, nn.Flatten(3, 4), Permute([0, 1, 2, 4, 3]), nn.Flatten(3))


def apart(features: Tensor, ratio: int) -> Tensor:
    """Undo ``side_by_side``, channels last throughout. (B, h, w, C * r * r) -> (B, r h, r w, C)."""
    grid = features.unflatten(3, (-1, ratio**2)).mT.unflatten(3, (ratio, ratio)).transpose(2, 3)
    return grid.flatten(3, 4).flatten(1, 2)


def create_net(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Make a timm model with random weights.

    Raises:
        ValueError: If timm is not installed or knows no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"backbone {name!r} needs the package timm; install it: {INSTALL}") from error
    try:
        return timm.create_model(name, pretrained=False, **dict(options or {}))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"backbone.name = {name!r}: timm cannot make it ({error})") from error


def load_file(net: Any, file: str) -> None:
    """Load a local weights file into a timm model; a classifier of another shape is passed over.

    Raises:
        ValueError: Naming the file, if it is missing, unreadable, or of another model.
    """
    from timm.models import load_state_dict

    if not Path(file).is_file():
        raise ValueError(f"backbone.pretrained: {file}: no such file")
    try:
        state = load_state_dict(file, device="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"backbone.pretrained: {file}: cannot be read as weights ({reason})") from error
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    own = net.state_dict()
    state = {k: v for k, v in state.items() if not (k.startswith(heads) and k in own and own[k].shape != v.shape)}
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"backbone.pretrained: {file}: {' '.join(str(error).split())[:300]}") from error
    wrong = [key for key in (*missing, *unexpected) if not key.startswith(heads)]
    if wrong:
        raise ValueError(f"backbone.pretrained: {file}: not weights of this model (field {wrong[0]!r})")


@torch.no_grad()
def prepare_for_inference(backbone: nn.Module, image_size: int) -> nn.Module:
    """Return a backbone's copy that computes the same without batch norms.

    Each convolution takes up the batch norm that is registered next; running both backbones on noise tells whether that
    was its own. The copy cannot be trained, and its state no longer fits a checkpoint.

    Args:
        backbone: In evaluation mode.
        image_size: Side of the images to run it on, in pixels.

    Returns:
        The copy; or the backbone itself where the two disagree.

    Raises:
        ValueError: If the backbone is in training mode.
    """
    if backbone.training:
        raise ValueError("batch norms are folded for inference: call eval() first")
    prepared = copy.deepcopy(backbone)
    layers = [(name, m) for name, m in prepared.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for (_, convolution), (name, norm) in pairwise(layers):
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if convolution.out_channels == norm.num_features:
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            prepared.set_submodule(name, getattr(norm, "act", nn.Identity()))  # timm's norms hold an activation too
    dtype = next(backbone.parameters()).dtype
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = backbone(images)
    error = (prepared(images) - expected).norm() / expected.norm()
    return prepared if bool(error < _TOLERANCE) else backbone
