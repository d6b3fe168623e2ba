"""What a run settles with its machine: seeds, precision, memory, BatchNorm over processes."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import LayerSync, TorchSyncBatchNorm
from lightning.pytorch.utilities import rank_zero_only
from torch.nn import Module

from fastcap.utils.distributed import sync_batch_norms, unsync_batch_norms
from fastcap.utils.errors import UserError

log = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h
_NEVER = 2**31 - 1


def seed_run(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, and loading workers'; ``UserError`` if it is out of range."""
    try:
        L.seed_everything(seed, workers=True, verbose=False)
    except ValueError as error:
        raise UserError(f"seed = {seed}: {error}") from error


def run_precision(trainer: Mapping[str, Any]) -> str:
    """Return the precision that a run computes in, in Lightning's words, where its node ``trainer`` says ``auto``."""
    return _precision(str(trainer["precision"]), str(trainer.get("accelerator") or "auto"))


@functools.cache  # said once
def _precision(wanted: str, accelerator: str) -> str:
    cuda = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    native = cuda_has_bf16() if cuda else accelerator in ("auto", "cpu") and cpu_has_bf16()
    device = "the GPU" if cuda else "this CPU" if accelerator in ("auto", "cpu") else accelerator
    if wanted == "auto":
        chosen = "bf16-mixed" if native else "32-true"
        verb = "computes" if native else "does not compute"
        rank_zero_only(log.info)("trainer.precision=auto: %s, as %s %s bf16", chosen, device, verb)
        return chosen
    if wanted.startswith("bf16") and device == "this CPU" and not native:
        rank_zero_only(log.warning)(
            "trainer.precision=%s: this CPU emulates bf16, convolutions take some 20 times longer than in fp32", wanted
        )
    return wanted


def validation_interval(trainer: Mapping[str, Any]) -> int | None:
    """Epochs between validations, by the configuration's node ``trainer``; its wrong values are a ``UserError``.

    A shorter run is validated at its end, or it would have no best checkpoint.
    """
    every, epochs = trainer.get("check_val_every_n_epoch"), trainer.get("max_epochs")
    for name, value in (("check_val_every_n_epoch", every), ("max_epochs", epochs)):
        if not isinstance(value, int | None):
            raise UserError(f"trainer.{name} = {value!r} must be a whole number or null")
    return min(every, epochs) if every and epochs and epochs > 0 else every


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by instructions of its own, which torch may use here."""
    if platform.machine() in ("x86_64", "AMD64"):  # where oneDNN's own query is content with AVX-512, and emulates
        allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # ATEN_CPU_CAPABILITY may say no
        return allowed and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cuda_has_bf16() -> bool:
    """Whether the GPU does."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def keep_freed_memory() -> bool:
    """Have the process keep the memory of freed tensors for the next ones, until it ends.

    glibc asks the kernel anew for every block above 32 MB and gives it back when it is freed, so that each page of a
    large activation is fetched and zeroed again at every step: half the time of a training step on features of 64
    images (218,000 page faults; experiments/LOG.md). The price is memory that other processes do not get back.

    Returns:
        Whether the C library took it; other libraries than glibc have their own ways, and are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, _NEVER))


class BatchNormSync(LayerSync):
    """BatchNorm over the batch of all processes: torch's on GPUs, FastCap's own where torch has none."""

    def apply(self, model: Module) -> Module:
        """Convert every BatchNorm layer."""
        if next(model.parameters()).is_cuda:
            return TorchSyncBatchNorm().apply(model)
        sync_batch_norms(model)
        return model

    def revert(self, model: Module) -> Module:
        """Convert them back."""
        unsync_batch_norms(model)
        return TorchSyncBatchNorm().revert(model)
