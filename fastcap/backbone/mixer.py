"""Token mixers of SpatialMamba: a gated state-space layer around four ways of scanning a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcap.backbone.cross_scan import NUM_DIRECTIONS, grid_scan
from fastcap.backbone.scan import ssd_scan


class CrossScanMixer(nn.Module):
    """Gated selective scan, its heads shared out over the four directions.

    With heads shared out, a direction scans a quarter of the channels and the cross-scan costs one scan. The state's
    input and output projections b and c belong to the patch, whatever the direction it is visited from.

    Args:
        dim: Width D.
        d_state: States S of each head.
        head_dim: Channels P of each head.
        expand: Inner width over D.
        d_conv: Side of the depthwise convolution before the scan.
        chunk_size: Tokens a chunk of the scan.

    Raises:
        ValueError: If the heads do not fill the inner width, or do not divide over the four directions.
    """

    heads_divide_by = NUM_DIRECTIONS
    steps_per_head = 1

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        head_dim: int = 32,
        expand: float = 2.0,
        d_conv: int = 3,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        self.inner_dim = int(dim * expand)
        self.num_heads = self.inner_dim // head_dim
        if self.num_heads * head_dim != self.inner_dim or self.num_heads % self.heads_divide_by:
            times = f"a multiple of {self.heads_divide_by}" if self.heads_divide_by > 1 else "a whole number"
            raise ValueError(f"dim * expand = {self.inner_dim} must be head_dim = {head_dim} times {times}")
        self.d_state = d_state
        self.head_dim = head_dim
        self.chunk_size = chunk_size
        self.conv_dim = self.inner_dim + 2 * d_state
        self.num_steps = self.num_heads * self.steps_per_head
        self.in_proj = nn.Linear(dim, self.inner_dim + self.conv_dim + self.num_steps, bias=False)
        self.conv = nn.Conv2d(self.conv_dim, self.conv_dim, d_conv, padding=d_conv // 2, groups=self.conv_dim)
        self.norm = nn.LayerNorm(self.inner_dim)
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=False)
        # Mamba-2's initialisation: step sizes log-uniform in [0.001, 0.1], decay rates uniform in [1, 16].
        step = torch.exp(torch.rand(self.num_steps) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.a_log = nn.Parameter(torch.log(torch.empty(self.num_steps).uniform_(1, 16)))
        self.skip = nn.Parameter(torch.ones(self.num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens over the grid. (B, H, W, D) -> (B, H, W, D)."""
        gate, mixed, step = self.in_proj(x).split([self.inner_dim, self.conv_dim, self.num_steps], dim=-1)
        mixed = F.silu(self.conv(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        u, b, c = mixed.split([self.inner_dim, self.d_state, self.d_state], dim=-1)
        u = u.unflatten(-1, (self.num_heads, self.head_dim))
        dt = F.softplus(step.float() + self.dt_bias.float())
        y = self.scan(u, dt, b, c)
        y = torch.addcmul(y, u, self.skip.to(u.dtype).unsqueeze(-1)).flatten(3)
        return self.out_proj(self.norm(y) * F.silu(gate))

    def scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Mix the tokens of each head.

        Args:
            u: Inputs. (B, H, W, heads, P)
            dt: Step sizes. (B, H, W, heads * steps_per_head)
            b: Input projections. (B, H, W, S)
            c: Output projections. (B, H, W, S)

        Returns:
            (B, H, W, heads, P)
        """
        return grid_scan(u * dt.to(u.dtype).unsqueeze(-1), self.log_decay(dt), b, c, self.chunk_size)

    def log_decay(self, dt: Tensor) -> Tensor:
        """Return dt * a, never positive. (B, H, W, heads) -> the same."""
        return dt * -self.a_log.float().exp()


class FullCrossScanMixer(CrossScanMixer):
    """Every direction scans every head, with step sizes and decays of its own, and the outputs are summed.

    As VMamba has it (arXiv 2401.10166): four times the scan.
    """

    heads_divide_by = 1
    steps_per_head = NUM_DIRECTIONS

    def scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """As in ``CrossScanMixer``."""
        repeated = u.repeat(1, 1, 1, NUM_DIRECTIONS, 1)
        y = super().scan(repeated, dt, b, c)
        return y.unflatten(3, (NUM_DIRECTIONS, self.num_heads)).sum(3)


class OrderFreeMixer(CrossScanMixer):
    """No order at all: every patch reads one state that all patches wrote to (VSSD, arXiv 2407.18559).

    A patch writes with weight dt * exp(-dt * a), so a head learns which patches count; the state is their mean.
    """

    heads_divide_by = 1

    def scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """As in ``CrossScanMixer``."""
        height, width = u.shape[1:3]
        weight = (dt * self.log_decay(dt).exp()).to(u.dtype) / (height * width)
        written = (u * weight.unsqueeze(-1)).flatten(3).flatten(1, 2)
        state = b.flatten(1, 2).mT @ written
        return (c.flatten(1, 2) @ state).unflatten(1, (height, width)).unflatten(3, (self.num_heads, self.head_dim))


class StateFusionMixer(CrossScanMixer):
    """One scan by rows, whose states neighbours then share (Spatial-Mamba, ICLR 2025, arXiv 2410.15091).

    The state of a channel is a single number there. Three dilated depthwise convolutions fuse the states of nearby
    patches before the output projection reads them: a patch sees those before it, and a neighbourhood after it.

    Args:
        dim: Width D.
        d_state: Of no effect on this mixer's state, which is one a channel; accepted so that stages may differ.
        **options: As in ``CrossScanMixer``.
    """

    heads_divide_by = 1
    dilations = (1, 3, 5)

    def __init__(self, dim: int, d_state: int = 1, **options: float) -> None:
        super().__init__(dim, 1, **options)  # type: ignore[arg-type]
        self.fusions = nn.ModuleList(self._identity(dilation) for dilation in self.dilations)

    def _identity(self, dilation: int) -> nn.Conv2d:
        """A depthwise convolution that at first passes on its share of the patch's own state."""
        dim = self.inner_dim
        convolution = nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation, groups=dim, bias=False)
        nn.init.dirac_(convolution.weight, dim)
        with torch.no_grad():
            convolution.weight /= len(self.dilations)
        return convolution

    def scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """As in ``CrossScanMixer``."""
        height, width = u.shape[1:3]
        x = (u * dt.to(u.dtype).unsqueeze(-1)).flatten(1, 2)
        inputs = b.flatten(1, 2).unsqueeze(2)
        state, _ = ssd_scan(
            x, self.log_decay(dt).flatten(1, 2), inputs, torch.ones_like(inputs), chunk_size=self.chunk_size
        )
        grid = state.flatten(2).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        fused = torch.stack([fusion(grid) for fusion in self.fusions]).sum(0).permute(0, 2, 3, 1)
        return (fused * c).unflatten(3, (self.num_heads, self.head_dim))


MIXERS: dict[str, type[CrossScanMixer]] = {
    "cross_scan": CrossScanMixer,
    "full_cross_scan": FullCrossScanMixer,
    "order_free": OrderFreeMixer,
    "state_fusion": StateFusionMixer,
}
