"""The training system: losses, optimiser and metrics around the model that is shipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastcap.generation.icmr import sample_mask
from fastcap.losses import (
    Objective,
    alignment_loss,
    concept_loss,
    length_loss,
    scst_loss,
    shift_right,
    token_loss,
)
from fastcap.metrics.evaluation import CaptionEvaluation, Prediction
from fastcap.model import FastCap
from fastcap.optim import clip_gradients, parameter_groups, scale_learning_rates
from fastcap.types import CaptionBatch, DecoderOutput, Refinement, SpecialTokens
from fastcap.utils.distributed import averaged, collective, gather_rows, weigh
from fastcap.utils.rng import ImageRandom, RandomSource, step_seed

Reward = Callable[[Sequence[int], Sequence[Sequence[int]]], list[float]]


class TrainedModule(L.LightningModule):
    """How captioners and backbones alike are optimised.

    Args:
        optimizer: Makes the optimiser from parameter groups.
        schedule: Makes the learning-rate schedule from (optimizer, total_steps).
        weight_decay: Of matrices; biases, norms and embeddings do not decay.
        seed: Root of all randomness.
    """

    lr_scales: Mapping[str, float] = {}

    def __init__(
        self,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler],
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.weight_decay, self.seed = weight_decay, seed

    def seed_step(self, batch_idx: int) -> None:
        """Let dropout follow from (seed, epoch, batch, rank), so that a resumed run equals an unbroken one."""
        seed = step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)  # torch's own takes 1 ms

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over decayed and undecayed parameters, and its schedule in steps."""
        optimizer = self.make_optimizer(parameter_groups(self, self.weight_decay, self.lr_scales))
        scale_learning_rates(optimizer)
        schedule = self.make_schedule(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients' norm."""
        clip_gradients(optimizer, gradient_clip_val)


class CaptioningModule(TrainedModule):
    """Train and evaluate a ``FastCap``.

    All random numbers of a step follow from (seed, epoch, image), those of dropout from (seed, epoch, batch, rank): a
    resumed run equals an unbroken one, and without dropout two processes equal one that takes their batches together.

    Args:
        model: The model.
        special: Special token ids.
        decode: Token ids to text.
        objective: Loss weights and masking.
        backbone_lr_scale: The backbone's learning rate over that of the rest: small for one that brings weights, zero
            to keep it as it is, which saves its gradients.
        alignment_lr_scale: Likewise of the alignment, which makes the image memory: small where that was trained first.
        evaluation: Collects and scores the captions of validation; its splits are what the validation loaders hold. Of
            several, the means of their values are ``val/...``.
        reward: Score of each caption, given as token ids, from the images' ids; asked for where
            ``objective.scst_weight`` is above zero.
        artifacts: Plain data stored in every checkpoint under ``fastcap``.
        **training: As in ``TrainedModule``.
    """

    def __init__(
        self,
        model: FastCap,
        special: SpecialTokens,
        decode: Callable[[list[int]], str],
        objective: Objective,
        evaluation: CaptionEvaluation,
        backbone_lr_scale: float = 1.0,
        alignment_lr_scale: float = 1.0,
        reward: Reward | None = None,
        artifacts: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        freeze_untrained(model, objective)
        for part, scale in ((model.backbone, backbone_lr_scale), (model.alignment, alignment_lr_scale)):
            if scale == 0:
                part.requires_grad_(False)
        self.model = model
        self.special = special
        self.decode_text = decode
        self.objective = objective
        self.lr_scales = {"model.backbone": backbone_lr_scale, "model.alignment": alignment_lr_scale}
        self.evaluation = evaluation
        self.reward = reward
        self.artifacts = dict(artifacts or {})
        self._sums: dict[tuple[str, str], tuple[Tensor, int]] = {}
        # Equal in every process and never changed; where the CPU's autocast is on, DDP could not broadcast their fp16.
        self._ddp_params_and_buffers_to_ignore = [f"model.ngrams.{name}" for name, _ in model.ngrams.named_buffers()]

    def texts(self, refinement: Refinement) -> list[str]:
        """Turn generated ids into captions, one an image."""
        rows = zip(refinement.tokens.tolist(), refinement.lengths.tolist(), strict=True)
        return [self.decode_text(ids[:length]) for ids, length in rows]

    # Training

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        """Compute the training losses of a batch, and log them."""
        self.seed_step(batch_idx)
        with collective():
            losses, output = self.losses(batch, ImageRandom(self.seed, self.current_epoch, batch.image_ids))
            if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps):  # type: ignore[attr-defined]
                return losses["total"]  # Lightning would throw the values away, which takes 3 % of a small step
            shown = {f"train/loss_{name}" if name != "total" else "train/loss": v for name, v in losses.items()}
            if output is not None:
                loads = output.expert_weights.detach().float().mean(0).unbind()
                shown |= {f"moe/load_e{expert}": share for expert, share in enumerate(loads)}
            shown = averaged(shown)
        for name, value in shown.items():
            self.log(name, value, prog_bar=name == "train/loss")
        return losses["total"]

    def encode(self, batch: CaptionBatch) -> Tensor:
        """Compute the image memory of a batch. (B, N, D)."""
        return self.model.encode(batch.images) if batch.features is None else self.model.encode_map(batch.features)

    def losses(
        self, batch: CaptionBatch, random: RandomSource, memory: Tensor | None = None
    ) -> tuple[dict[str, Tensor], DecoderOutput | None]:
        """Compute every loss of a batch.

        The captions reach the decoder only as masked input: the memory is made from the images alone. Inside
        ``collective()`` a loss averaged over processes is that of the whole batch.

        Args:
            batch: Images and captions.
            random: Decides the masks.
            memory: Image memory, if it is computed already. (B, N, D)

        Returns:
            The losses by name, and ``total``, which is minimised; what the decoder gave, None where it has no loss.
        """
        objective, model, output = self.objective, self.model, None
        memory = self.encode(batch) if memory is None else memory
        losses: dict[str, Tensor] = {}
        counts: dict[str, Tensor | int] = {"length": batch.lengths.numel(), "balance": len(batch)}
        captions, lengths = (t[:, : objective.decoded_captions] for t in (batch.tokens, batch.lengths))

        # 1. The decoder restores what is hidden of the captions.
        if objective.decodes:
            inputs, targets, scored, pad = self._decoder_inputs(captions.flatten(0, 1), lengths.flatten(), random)
            output = model.decoder(inputs, memory, pad)
            losses["token"] = token_loss(output.logits, targets, scored, objective.label_smoothing)
            losses["balance"] = output.aux_loss
            counts["token"] = scored.sum()
        # 2. The image alone gives the captions' lengths, words and phrases, and its place beside whole captions.
        losses["length"] = length_loss(model.length(memory), batch.lengths)
        if objective.alignment_weight > 0:
            image, text, scale = model.alignment.embed(memory, captions, lengths)
            losses["alignment"] = alignment_loss(gather_rows(image), gather_rows(text), scale)
        for name, logits, present, weights in self._concepts(memory, batch.tokens):
            losses[name] = concept_loss(logits, present, weights)
            counts[name] = (weights * present).sum().clamp(min=1.0)
        # 3. Sampled captions are rewarded.
        if objective.scst_weight > 0 and self.training:
            losses["scst"], counts["scst"] = self._scst(batch, memory)
        losses = weigh(losses, counts)
        losses["total"] = objective.total(losses)
        return losses, output

    def _decoder_inputs(
        self, tokens: Tensor, lengths: Tensor, random: RandomSource
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hide tokens of captions (B * K, L); returns input, targets, where the loss counts, and padding."""
        tokens = tokens[:, : int(lengths.max())]
        pad = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        if self.model.decoder.causal:
            return *shift_right(tokens, lengths, self.special), pad
        hidden = sample_mask(lengths, tokens.shape[1], self.objective.full_mask_share, random)
        return tokens.masked_fill(hidden, self.special.mask), tokens, hidden, pad

    def _concepts(self, memory: Tensor, tokens: Tensor) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Predict concepts and phrases that have a loss: name, logits (B, n), targets (B, n) and weights (n,)."""
        weights, concepts = self.objective.weights, self.model.alignment.concepts
        if not any(weights[name] > 0 for name in concepts.parts):
            return
        targets, logits = concepts.targets(tokens), concepts(memory)
        for name, part in concepts.parts.items():
            if weights[name] > 0 and len(concepts.weights[part]):
                yield name, logits[:, part], targets[:, part], concepts.weights[part]

    def _scst(self, batch: CaptionBatch, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Sample captions by the refinement that ``decode`` runs, and prefer those that score above the others.

        Returns:
            The loss, and how many decisions it is a mean over.
        """
        number = self.objective.scst_samples
        sampled = self.model.sample(memory, number, self.objective.scst_temperature)
        assert self.reward is not None, "scst_weight needs a reward"
        image_ids = batch.image_ids.repeat_interleave(number).tolist()
        pairs = zip(sampled.tokens.tolist(), sampled.lengths.tolist(), strict=True)
        scores = self.reward(image_ids, [ids[:length] for ids, length in pairs])
        rewards = torch.tensor(scores, device=memory.device).view(-1, number)
        self.log("train/reward", 100 * rewards.mean(), sync_dist=True)
        return scst_loss(sampled, rewards), sampled.decided.sum()

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Start metrics afresh."""
        self.evaluation.reset()
        self._sums, self._generation_seconds = {}, 0.0

    def validation_step(self, batch: CaptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Caption the images as a user would, and take the loss with masks that never change."""
        split, started = self.evaluation.splits[dataloader_idx], time.perf_counter()
        memory = self.encode(batch)
        encoded = time.perf_counter()
        with collective():
            losses = averaged(self.losses(batch, ImageRandom(self.seed, 0, batch.image_ids), memory)[0])
        for name, value in losses.items():
            if name != "balance":
                self._log_mean(split, "loss" + ("" if name == "total" else f"_{name}"), value, len(batch))
        decoding = time.perf_counter()
        refinement = self.model.decode(memory)
        self._generation_seconds += time.perf_counter() - decoding + encoded - started
        rows = zip(
            batch.image_ids.tolist(), self.texts(refinement), refinement.scores.tolist(), batch.references, strict=True
        )
        self.evaluation.predictions += [Prediction(*row, split) for row in rows]
        error = refinement.drafted_lengths - batch.lengths.float().mean(1)
        self.log("dlag/mae", error.abs().mean(), batch_size=len(batch), sync_dist=True)
        if self.model.ngrams.counted:
            unseen = self.model.ngrams.unseen(refinement.tokens, refinement.lengths).float()
            self._log_mean(split, "unseen_bigrams", 100 * unseen.mean(), len(batch))

    def _log_mean(self, split: str, name: str, value: Tensor, size: int) -> None:
        """Log a batch's mean, and remember it for the mean over splits."""
        self.log(f"{split}/{name}", value, batch_size=size, sync_dist=True, add_dataloader_idx=False)
        total, count = self._sums.get((split, name), (torch.zeros_like(value), 0))
        self._sums[split, name] = (total + size * value.detach(), count + size)

    def on_validation_epoch_end(self) -> None:
        """Log every metric of each split, and their means over several."""
        images_per_second = len(self.evaluation.predictions) / max(self._generation_seconds, 1e-9)
        values = self.evaluation.compute()
        self.log("time/eval_images_per_s", images_per_second, sync_dist=True)
        for split, each in values.items():
            for name, value in each.items():
                self.log(f"{split}/{name}", float(value), prog_bar=name == "cider", sync_dist=True)
        if len(values) == 1:
            return
        for (split, name), (total, count) in self._sums.items():
            values[split][name] = float(total) / count
        for name in sorted(set.intersection(*map(set, values.values()))):  # in every process the same order
            self.log(f"val/{name}", sum(each[name] for each in values.values()) / len(values), sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what rebuilds the model: plain data only."""
        checkpoint["fastcap"] = self.artifacts


def freeze_untrained(model: FastCap, objective: Objective) -> None:
    """Freeze what no loss reaches: distributed training waits for every other gradient."""
    alignment, concepts, weights = model.alignment, model.alignment.concepts, objective.weights
    cast(nn.Module, model.decoder).requires_grad_(objective.decodes)
    for part in (alignment.image_head, alignment.text_encoder, alignment.log_scale):
        part.requires_grad_(objective.alignment_weight > 0)
    concepts.memory_head.requires_grad_(max(weights["concept"], weights["phrase"]) > 0)
