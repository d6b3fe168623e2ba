"""Which images make which batch: counter-based order, sharded over processes, resumable in mid-epoch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from fastcap.data.errors import DataError
from fastcap.types import CaptionBatch

_PATIENCE = 180  # seconds without a batch from a worker
_SHARED_MEMORY = "/dev/shm"


class BatchIndex(NamedTuple):
    """What a worker needs to build one batch: the epoch, from zero, travels with the positions in the data set (B,)."""

    epoch: int
    positions: np.ndarray


class EpochSampler(Sampler[BatchIndex]):
    """Batches of positions, this process's share of them.

    In training the order is a permutation drawn from (seed, epoch), every process gets equally many images and only
    full batches are kept. In evaluation the order is that of the data, every image comes exactly once over all
    processes, and all processes yield equally many batches (DistributedDataParallel syncs buffers at each, and would
    wait for ever), the last one split where a process would have one too few.

    Args:
        num_items: Images in the data set.
        batch_size: Images of one batch, of each process.
        training: Whether to drop remainders, and to shuffle.
        seed: Seed of the permutation.
        shuffle: False keeps the order of the data in training too.
        parts: Where an epoch is to show shares of parts of the data: each part's positions and its share.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        training: bool,
        seed: int = 0,
        shuffle: bool = True,
        parts: Sequence[tuple[np.ndarray, float]] = (),
    ) -> None:
        self.parts = [(positions, max(1, round(share * len(positions)))) for positions, share in parts]
        self.num_items = sum(number for _, number in self.parts) if parts else num_items
        self.batch_size, self.training = batch_size, training
        self.seed, self.shuffle = seed, shuffle and training
        self.epoch = 0
        self.start = 0  # batches left out at the beginning of the next iteration only, for resuming

    @property
    def sampler(self) -> EpochSampler:
        """Itself: Lightning calls ``set_epoch`` on ``dataloader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of one process in an epoch; the same on every process."""
        world = _world()[1]
        if self.training:
            return self.num_items // world // self.batch_size
        return -(-self.num_items // (world * self.batch_size))

    def __iter__(self) -> Iterator[BatchIndex]:
        """Yield the batches of the current epoch, from ``start`` on."""
        start, self.start = self.start, 0
        order = np.arange(self.num_items)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_items)
        if self.parts:
            order = np.concatenate([self._portion(part) for part in range(len(self.parts))])[order]
        rank, world = _world()
        shard = order[rank::world]
        batches = [shard[low : low + self.batch_size] for low in range(0, len(shard), self.batch_size)]
        if not self.training and 0 < len(batches) < len(self) and len(batches[-1]) > 1:
            batches[-1:] = np.array_split(batches[-1], 2)
        for positions in batches[start : len(self)]:
            yield BatchIndex(self.epoch, positions)

    def _portion(self, part: int) -> np.ndarray:
        """Positions of a part that the current epoch shows: the next ones of an endless row of permutations."""
        positions, number = self.parts[part]
        start = self.epoch * number
        rounds = range(start // len(positions), (start + number - 1) // len(positions) + 1)
        rows = [np.random.default_rng([self.seed, part, turn]).permutation(len(positions)) for turn in rounds]
        begin = start - rounds[0] * len(positions)
        return positions[np.concatenate(rows)[begin : begin + number]]


class ResumableLoader(DataLoader[CaptionBatch]):
    """A DataLoader that knows how far it got, so that a run resumed in mid-epoch meets the batches it had not seen.

    Lightning stores ``state_dict`` in its checkpoints. Iteration starts lazily, with the first batch asked for,
    because Lightning makes the iterator before it has settled the epoch.

    Args:
        dataset: With ``__getitems__``.
        sampler: Yields what that takes.
        num_workers: Processes that build batches; 0 builds them in this one.
        batch_bytes: Size of a batch. Workers hand batches over in shared memory: where they do not fit torch would wait
            for ever, and a ``DataError`` is raised.
    """

    def __init__(self, dataset: Dataset[Any], sampler: EpochSampler, num_workers: int, batch_bytes: int) -> None:
        # A generator of its own: DataLoader would otherwise draw from torch's global one at every epoch.
        own = torch.Generator().manual_seed(0)
        batches: Any = sampler  # typed as lists of indices; anything that __getitems__ takes will do
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_identity,
            generator=own,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=_PATIENCE if num_workers else 0,
        )
        needed = num_workers * (self.prefetch_factor or 0) * batch_bytes
        if num_workers and needed > (free := _free_shared_memory()):
            raise DataError(
                f"{_SHARED_MEMORY} has {free / 1e6:.1f} MB free, {num_workers} workers need {needed / 1e6:.1f}: take "
                "data.num_workers=0, or more shared memory (docker run --shm-size=2g)"
            )
        self.epochs = sampler
        self.progress = {"epoch": 0, "batches": 0}
        self.resume: dict[str, int] = {}

    def __iter__(self) -> Iterator[CaptionBatch]:  # type: ignore[override]  # a generator: see above
        """Yield the batches of the sampler's epoch; raises ``DataError`` if a worker dies or is stuck."""
        epoch, resume, self.resume = self.epochs.epoch, self.resume, {}
        self.epochs.start = resume.get("batches", 0) if resume.get("epoch") == epoch else 0
        self.progress = {"epoch": epoch, "batches": self.epochs.start}
        try:
            for batch in super().__iter__():
                self.progress["batches"] += 1
                yield batch
        except DataError as error:
            if "Original Traceback" not in str(error):
                raise
            # A worker's own error comes with its traceback: its last line is what was said.
            raise DataError(str(error).splitlines()[-1].partition("DataError: ")[2]) from error
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise DataError(
                f"a process that builds batches (data.num_workers={self.num_workers}) is gone or stuck: {error}; "
                f"{_SHARED_MEMORY} has {_free_shared_memory() / 1e6:.1f} MB free"
            ) from error

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches have been handed out."""
        return dict(self.progress)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip the batches already handed out, if the next iteration is of the same epoch."""
        self.resume = dict(state)


def _free_shared_memory() -> float:
    """Bytes free where workers leave their batches; endless where there is no such place."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return float("inf")


def _identity(batch: Any) -> Any:
    return batch


def _world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
