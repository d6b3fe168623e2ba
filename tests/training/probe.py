"""A callback that notes how many weights this process holds, in training and in validation."""

import os
from pathlib import Path

import lightning as L
from torch.distributed.tensor import DTensor


class Probe(L.Callback):
    def _note(self, trainer, module, phase):
        held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in module.parameters())
        rank = os.environ.get("LOCAL_RANK", "0")
        Path(trainer.default_root_dir, f"{phase}_{rank}.txt").write_text(str(held))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._note(trainer, pl_module, "train")

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self._note(trainer, pl_module, "validation")
