"""Weights, gradients and the optimiser's state shared out over processes (fully sharded data parallel, torch's FSDP2).

Lightning's own FSDP2 strategy saves and loads files itself, keeps evaluation sharded and knows no BatchNorm over
processes. Here checkpoints are those of any other run, whole and written by ``CheckpointIO``, and from a validation's
start to its end every process holds the whole weights: it may then caption what it likes, without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from fastcap.utils.errors import UserError

_STEPS = ("training_step", "validation_step", "test_step")


class ShardingError(UserError):
    """A module whose weights cannot be shared out."""


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy over all processes, with whole checkpoints and whole weights in evaluation.

    A module names the ``sharded_blocks`` that its forward pass runs once each, in the same order in every process:
    their weights are fetched when they run and let go of afterwards. All other weights are whole while a step lasts.

    Args:
        options: Of ``ModelParallelStrategy``: ``process_group_backend``, ``timeout``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning reads checkpoints as ever, and hands over what they hold."""
        return True

    def setup_environment(self) -> None:
        """Share out over all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Move, convert and shard the module, then build its optimiser."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        if not isinstance(self.model, FSDPModule):
            self.model = self.precision_plugin.convert_module(self.model)
            self.model_to_device()
            if self._layer_sync and fitting:
                self.model = self._layer_sync.apply(self.model)
            shard(self.model, self.device_mesh["data_parallel"])
        self.barrier()
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def on_validation_start(self) -> None:
        """Give every process the whole weights."""
        unshard(self.model)

    def on_validation_end(self) -> None:
        """Let go of the others' weights."""
        reshard(self.model)

    def on_test_start(self) -> None:
        """As ``on_validation_start``."""
        unshard(self.model)

    def on_test_end(self) -> None:
        """As ``on_validation_end``."""
        reshard(self.model)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a whole checkpoint, in the first process."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Put the whole weights together, on the CPU of the first process; the others get none."""
        assert self.model is not None
        return whole(self.model.state_dict(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Put the optimiser's whole state together, likewise, in the form of any other run."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        per_parameter = {number: whole(values, keep=self.is_global_zero) for number, values in state["state"].items()}
        return {**state, "state": per_parameter}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's share of whole weights."""
        assert self.model is not None
        own = self.model.state_dict()
        state = {name: share_of(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.model.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of the optimisers' whole state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            per_parameter = {
                number: {
                    name: share_of(value, parameters[number] if name != "step" else None)
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": per_parameter})


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Share a module's weights out over the processes of a mesh, block by block and then the rest.

    Raises:
        ShardingError: If the module was not made for it.
    """
    blocks: Callable[[], list[nn.Module]] | None = getattr(module, "sharded_blocks", None)
    if blocks is None:
        raise ShardingError(f"trainer=fsdp trains captioners, not a {type(module).__name__}: choose trainer=ddp")
    for block in blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for name in _STEPS:
        register_fsdp_forward_method(module, name)
    for part in _sharded(module):
        # What a step leaves unused in one process alone (an expert that nobody chose) has to be summed up all the same.
        part.set_reduce_scatter_unused_params(True, recurse=False)
        if mesh.device_type == "cpu":
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no averages


def unshard(module: nn.Module | None) -> None:
    """Fetch the whole weights and keep them."""
    for part in _sharded(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def reshard(module: nn.Module | None) -> None:
    """Undo ``unshard``, and forget what ran meanwhile: a process that ran more would fetch in another order."""
    for part in _sharded(module):
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.reshard()
    if isinstance(module, FSDPModule):
        module.reset_iter_state()


def whole(values: Mapping[str, Any], keep: bool = True) -> dict[str, Any]:
    """Put sharded tensors together on the CPU, other values left as they are; every process has to call this.

    Args:
        values: Tensors and plain values by name.
        keep: Whether this process wants them; if not it only takes part.
    """
    found = {}
    for name, value in values.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full.detach().cpu() if isinstance(full, Tensor) else full
    return found


def share_of(value: Any, own: Any) -> Any:
    """This process's share of a whole tensor, cut as ``own`` is; the value itself where that is not sharded."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor):
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def _sharded(module: nn.Module | None) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)] if module is not None else []
