"""Which checkpoints a run keeps, when, and where; a signal that stops it finds its step finished and saved.

Lightning's own handlers save in the middle of whatever step they meet; what goes on from there is another run than the
unbroken one.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from fastcap.training.checkpoints import join, open_checkpoint
from fastcap.types import CaptionBatch

log = logging.getLogger(__name__)

EXIT_STATUS = 75  # EX_TEMPFAIL: not done, try again


class Preempted(BaseException):
    """A run that a signal stopped, after it was saved; no failure, so nothing that handles failures may catch it.

    ``signal`` is None in processes that were told by another one.
    """

    def __init__(self, received: signal.Signals | None, checkpoint: str, step: int) -> None:
        name = received.name if received else "a signal to another process"
        super().__init__(f"stopped by {name} after step {step}, saved in {checkpoint}: resume=last goes on from there")
        self.signal = received
        self.checkpoint = checkpoint


class StopSignal:
    """Remember SIGTERM or SIGUSR1 until a step is done, while ``watch`` is on.

    Lightning's handlers are set aside; one that was there before stays (submitit's, which queues sweeps' jobs again).
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._free: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}

    def setup(self) -> None:
        """See which signals nobody handles yet; to be called before Lightning sets its handlers."""
        main = threading.current_thread() is threading.main_thread()
        self._free = [number for number in self.SIGNALS if main and signal.getsignal(number) == signal.SIG_DFL]

    def watch(self) -> None:
        """Start to handle them."""
        for number in self._free:
            self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Hand them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


class LastCheckpoint(L.pytorch.callbacks.ModelCheckpoint):
    """Keep ``checkpoints/last.ckpt`` in the run's folder, to resume from.

    It is written at the end of every epoch, at validations within one, between steps as often as asked for, and when
    SIGTERM or SIGUSR1 announces the end (Slurm's pre-emption): the run then stops. (Lightning's own ``save_last``
    follows the best checkpoint only: what a killed run had learnt since then would be lost.)

    Args:
        every_n_steps: Optimiser steps after which it is written within an epoch; None for none.
        every_minutes: Minutes after which it is; None for none. The first of both decides.
        dirpath: Another folder, or a URL that fsspec knows (``s3://bucket/run``).
        **options: ``ModelCheckpoint``'s own, for what is kept beside it.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        dirpath: str | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive or null, found {value}")
        super().__init__(**{"save_top_k": 0, **options}, enable_version_counter=False)
        self.folder = dirpath
        self.step_interval = every_n_steps
        self.seconds_interval = None if every_minutes is None else 60 * every_minutes
        self.stop_signal = StopSignal()
        self._last_step, self._seen_step = -1, -1
        self._last_time = time.monotonic()
        self._loader_states: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the folder: the run's own, wherever the loggers write."""
        self.dirpath = self.folder or join(trainer.default_root_dir, "checkpoints")
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.stop_signal.setup()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note how far the training loaders had got."""
        self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the loader go on where it was, and count from here.

        Lightning forgets the loader's state where ``configure_optimizers`` asks for the number of steps: the loader is
        then set up before the state has been read.
        """
        super().on_train_start(trainer, pl_module)
        loader: Any = trainer.train_dataloader
        if self._loader_states and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._loader_states[0])
        self._loader_states = []
        self._last_step = self._seen_step = trainer.global_step
        self._last_time = time.monotonic()
        self.stop_signal.watch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: CaptionBatch, batch_idx: int
    ) -> None:
        """Save where it is time, between optimiser steps."""
        stepped = trainer.global_step != self._seen_step  # gradients being accumulated are in no checkpoint
        self._seen_step = trainer.global_step
        if not stepped or trainer.is_last_batch or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # after the last batch the epoch's end saves
        # Lightning logs a step after this hook: one saved here, with the run then killed, would lose its row.
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs_now = every > 1 and trainer.global_step % every == 0
        if not logs_now and _any(trainer, self._due(trainer) or self.stop_signal.received is not None):
            self._keep_last(trainer)
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best where asked for, then the last."""
        super().on_validation_end(trainer, pl_module)
        if trainer.val_check_interval != 1.0:  # else the epoch ends now
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the best where that was not done yet, then the last."""
        super().on_train_epoch_end(trainer, pl_module)
        self._keep_last(trainer)
        self._stop_if_told(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hand the signals back."""
        self.stop_signal.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Hand the signals back (Lightning then calls no ``teardown``), and tell who pressed Ctrl-C how to go on."""
        self.stop_signal.release()
        if isinstance(exception, KeyboardInterrupt):
            saved = (
                f"resume=last goes on from {self.last_model_path}" if self.last_model_path else "nothing was saved yet"
            )
            exception.args = (f"interrupted after step {trainer.global_step}: {saved}",)

    def _due(self, trainer: L.Trainer) -> bool:
        steps, seconds = trainer.global_step - self._last_step, time.monotonic() - self._last_time
        return (self.step_interval is not None and steps >= self.step_interval) or (
            self.seconds_interval is not None and seconds >= self.seconds_interval
        )

    def _keep_last(self, trainer: L.Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if fitting and not trainer.fast_dev_run and trainer.global_step != self._last_step:  # type: ignore[attr-defined]
            self._last_step = trainer.global_step
            self.last_model_path = join(str(self.dirpath), "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)
            self._last_time = time.monotonic()

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        if _any(trainer, self.stop_signal.received is not None):
            raise Preempted(self.stop_signal.received, self.last_model_path, trainer.global_step)


class RunCheckpoint(LastCheckpoint):
    """Keep ``checkpoints/best.ckpt``, by a validation metric, beside what ``LastCheckpoint`` keeps by its options."""

    def __init__(self, monitor: str = "val/cider", mode: str = "max", **options: Any) -> None:
        super().__init__(**options, monitor=monitor, mode=mode, filename="best", save_top_k=1)


def validate_best(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> dict[str, float]:
    """Return the metrics of the best checkpoint, which is validated once more unless the last validation was its own.

    Loggers are taken from the trainer: an earlier epoch's model is no point of the curves.
    """
    trainer.loggers = []
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = trainer.checkpoint_callback
    if not isinstance(best, RunCheckpoint) or not best.best_model_path:
        return metrics
    # Of equal scores the first one's checkpoint is kept.
    same_score = metrics.get(str(best.monitor)) == float(best.best_model_score or 0)
    if not same_score or open_checkpoint(best.best_model_path)["global_step"] != trainer.global_step:
        trainer.validate(module, datamodule=data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics


@contextmanager
def exit_if_preempted() -> Iterator[None]:
    """End the process with ``EXIT_STATUS`` where a signal stopped the run, in Slurm's queue again after SIGUSR1.

    SIGUSR1 is what ``--signal`` sends before the time limit; pre-emption (SIGTERM) queues the job by itself.
    """
    try:
        yield
    except Preempted as stop:
        if getattr(rank_zero_only, "rank", 0) != 0:
            sys.exit(0)  # else Lightning would kill the first process, which still has something to do
        print(f"fastcap: {stop}", file=sys.stderr)
        if stop.signal == signal.SIGUSR1:
            requeue()
        sys.exit(EXIT_STATUS)


def requeue() -> bool:
    """Put this Slurm job in the queue again (``scontrol requeue``); False where that is not possible."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if not job:
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("scontrol requeue %s failed: %s", job, getattr(error, "stderr", None) or error)
        return False
    log.info("Slurm job %s is in the queue again", job)
    return True


def _any(trainer: L.Trainer, decision: bool) -> bool:
    """Whether any process decides so; all of them must ask."""
    return decision if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(decision, all=False)
