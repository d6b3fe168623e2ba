"""BatchNorm over the batch of all processes, for Lightning's ``sync_batchnorm``."""

from __future__ import annotations

from lightning.pytorch.plugins import LayerSync, TorchSyncBatchNorm
from torch.nn import Module

from fastcap.utils.distributed import sync_batch_norms, unsync_batch_norms


class BatchNormSync(LayerSync):
    """torch's SyncBatchNorm on GPUs, FastCap's own where torch has none."""

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
