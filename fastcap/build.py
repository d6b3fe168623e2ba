"""Build objects from a configuration, and a model from a checkpoint. Nothing else instantiates configurations."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

import fastcap
from fastcap.alignment.cmfa import ConceptTable
from fastcap.backbone.weights import load_backbone
from fastcap.data import DataError
from fastcap.data.concepts import Captions, Phrases, agreed_phrases, concept_agreement
from fastcap.data.datamodule import CaptionDataModule
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.metrics import CiderD
from fastcap.metrics.evaluation import CaptionEvaluation
from fastcap.model import FastCap
from fastcap.module import CaptioningModule
from fastcap.training.checkpoints import (
    FORMAT_VERSION,
    RUNS_DIR,
    AtomicCheckpointIO,
    CheckpointError,
    check_captioner,
    fill,
    find_checkpoint,
    model_state,
    not_allowed,
    read_checkpoint,
    start_from,
)
from fastcap.training.loggers import RunInfo, quiet
from fastcap.training.machine import BatchNormSync, keep_freed_memory, run_precision, validation_interval
from fastcap.training.resume import unfinished_run
from fastcap.utils.errors import UserError

_PACKAGE = Path(fastcap.__file__).parent
# The Hydra configs: inside an installed wheel's package, beside the package in a checkout.
CONFIG_DIR = str((_PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent) / "conf")

OmegaConf.register_new_resolver("fastcap.run_id", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)


def run_folder(name: str, resume: str | None, new: str) -> str:
    """Name a run's folder: with ``resume=last`` that of the newest run that did not finish, if any; else a new one."""
    found = unfinished_run(RUNS_DIR / name) if resume == "last" else None
    return found.name if found else new


OmegaConf.register_new_resolver("fastcap.run_folder", run_folder, use_cache=True, replace=True)


@dataclass
class LoadedCheckpoint:
    """What a checkpoint rebuilds.

    Attributes:
        model: The model in eval mode, weights loaded.
        tokenizer: The tokenizer it was trained with.
        config: The resolved configuration of its run, as plain data.
        path: The file.
    """

    model: FastCap
    tokenizer: CaptionTokenizer
    config: dict[str, Any]
    path: Path

    @property
    def image_size(self) -> int:
        """Side of the square images that it captions, in pixels."""
        data = self.config["data"]
        return int(data.get("eval_image_size") or data["image_size"])


class ConfigError(UserError, ValueError):
    """A configuration that builds nothing; the message names the part and the reason."""


def construct(node: DictConfig, *arguments: Any, **facts: Any) -> Any:
    """Instantiate a config node with facts known only now, handed over as they are.

    Raises:
        ConfigError: If the node's values are refused, saying by what and why.
    """
    try:
        return instantiate(node, _partial_=True)(*arguments, **facts)
    except DataError:
        raise
    # TypeError: of a key of another version, out of a checkpoint's configuration, or of a value of another type.
    except (ValueError, TypeError, InstantiationException, MisconfigurationException) as error:
        raise ConfigError(f"{node.get('_target_')}: {error.__cause__ or error}") from error


def build_datamodule(
    cfg: DictConfig, tokenizer: CaptionTokenizer | None = None, opened: Any = None
) -> CaptionDataModule:
    """Build the data module.

    Its vocabulary is ``tokenizer``, else that of the captioner to start from (which the checkpoint to go on from,
    ``opened``, has too), else one of the training captions.
    """
    start = OmegaConf.select(cfg, "init.captioner")
    if tokenizer is None and start:
        checkpoint = opened or read_checkpoint(start)
        check_captioner(cfg.resume or start, checkpoint)
        tokenizer = CaptionTokenizer.from_json(checkpoint["fastcap"]["tokenizer"])
    return construct(cfg.data, tokenizer=tokenizer or instantiate(cfg.tokenizer))


def build_backbone(cfg: DictConfig, fresh: bool = True) -> nn.Module:
    """Build the backbone, from pretrained weights where the configuration names some.

    Weights are named by a backbone's own key ``pretrained`` (those it brings), and by ``init.backbone`` (a file of
    ``fastcap distill`` or ``fastcap pretrain``).

    Args:
        cfg: With the node ``backbone``.
        fresh: False when a checkpoint will fill in the weights: starting ones are then neither needed nor read.

    Raises:
        ConfigError: If a setting is refused or the weights do not fit.
    """
    backbone: nn.Module = construct(cfg.backbone if fresh else _without_pretrained(cfg.backbone))
    start = OmegaConf.select(cfg, "init.backbone")
    if fresh and start:
        try:
            load_backbone(start, backbone)
        except ValueError as error:
            raise ConfigError(f"init.backbone: {error}") from error
    return backbone


def _without_pretrained(node: DictConfig) -> DictConfig:
    """Copy a backbone's node, no weights named: neither in its own key ``pretrained`` nor in those of its parts."""
    bare = copy.deepcopy(node)
    for part in (bare, bare.get("stem"), *bare.get("encoders", ())):
        if part and "pretrained" in part:
            part.pretrained = None
    return bare


def build_model(
    cfg: DictConfig,
    tokenizer: CaptionTokenizer,
    concepts: ConceptTable | None = None,
    fresh: bool = True,
) -> FastCap:
    """Build the model. Facts known only now (vocabulary, widths, concepts) are passed here and are no keys.

    Args:
        cfg: The whole configuration.
        tokenizer: The vocabulary.
        concepts: The training captions' concepts and phrases; None for the vocabulary's concepts alone.
        fresh: False when a checkpoint will fill in the weights.

    Raises:
        ConfigError: If a setting is refused, or decoding is to be guided by what is not trained.
    """
    start = OmegaConf.select(cfg, "init.captioner")
    special, vocab_size, max_length = tokenizer.special, tokenizer.vocab_size, int(cfg.data.max_length)
    refinement = construct(cfg.refinement, special=special)
    if not start:
        _check_guidance(cfg.concepts, refinement.guidance_weights.weighed)
    backbone: Any = build_backbone(cfg, fresh)
    decoder = construct(cfg.decoder, vocab_size=vocab_size, max_length=max_length, pad_id=special.pad)
    alignment = construct(
        cfg.alignment,
        feature_dim=backbone.feature_dim,
        dim=decoder.dim,
        concepts=concepts or ConceptTable(tokenizer.concepts()),
    )
    length = construct(cfg.length, dim=decoder.dim, max_length=max_length)
    if refinement.causal != decoder.causal:
        names = f"decoder {type(decoder).__name__} is not driven by {type(refinement).__name__}"
        raise ConfigError(f"{names}: choose refinement={'greedy' if decoder.causal else 'icmr'}")
    model = FastCap(backbone, alignment, decoder, length, refinement)
    if fresh and start:
        start_from(model, start)
    return model


def _check_guidance(concepts: DictConfig, weighed: Mapping[str, float]) -> None:
    """Refuse to guide decoding by concepts or phrases that are not trained."""
    for name, weight in weighed.items():
        loss = "phrase_loss_weight" if name == "bigram_bias" else "loss_weight"
        if not concepts[loss]:
            raise ConfigError(f"refinement.guidance.{name} = {weight}: concepts.{loss}=0 trains none")
        if name == "bigram_bias" and not concepts.min_phrase_count:
            raise ConfigError(f"refinement.guidance.{name} = {weight}: concepts.min_phrase_count=0 has no phrases")


def build_concepts(cfg: DictConfig, tokenizer: CaptionTokenizer, captions: Captions) -> ConceptTable:
    """Find the concepts and phrases of training captions, given as token ids; phrases without a loss are left out."""
    concepts = cfg.concepts
    least = concepts.min_phrase_count if concepts.phrase_loss_weight else 0
    phrases = agreed_phrases(captions, tokenizer, least) if least else Phrases([], [], [])
    weights, idf = concept_agreement(captions, tokenizer, concepts.min_count)
    return ConceptTable(tokenizer.concepts(), weights + phrases.weights, idf + phrases.idf, phrases.pairs)


def resumed_model(cfg: DictConfig, tokenizer: CaptionTokenizer, checkpoint: Mapping[str, Any]) -> FastCap:
    """Build the model of a run that goes on from an opened checkpoint, which has its weights, concepts and n-grams."""
    check_captioner(cfg.resume, checkpoint, tokenizer)
    model = build_model(cfg, tokenizer, fresh=False)
    fill(model, cfg.resume, model_state(checkpoint))
    return model


def build_module(cfg: DictConfig, datamodule: CaptionDataModule, model: FastCap | None = None) -> CaptioningModule:
    """Build the training system around a new model, or around one already loaded."""
    tokenizer, rewards = datamodule.tokenizer, cfg.objective.scst_weight > 0
    references = datamodule.reference_tokens() if model is None or rewards else {}
    if model is None:
        concepts = None if cfg.init.captioner else build_concepts(cfg, tokenizer, list(references.values()))
        model = build_model(cfg, tokenizer, concepts)
        if not model.ngrams.counted:
            model.ngrams.count(itertools.chain.from_iterable(references.values()), *datamodule.text_tokens())
    if rewards and model.decoder.causal:
        raise ConfigError("objective.scst_weight needs refinement=icmr: rewards gave the baseline nothing (study 007)")
    objective = instantiate(
        cfg.objective,
        concept_weight=cfg.concepts.loss_weight,
        phrase_weight=cfg.concepts.phrase_loss_weight,
    )
    options: Any = OmegaConf.to_container(cfg.metrics, resolve=True)
    try:
        evaluation = CaptionEvaluation(datamodule.validation_splits, options, datamodule.records)
    except ValueError as error:
        raise ConfigError(f"metrics: {error}") from error
    return CaptioningModule(
        model=model,
        special=tokenizer.special,
        decode=tokenizer.decode,
        optimizer=functools.partial(construct, cfg.optim.optimizer),
        schedule=functools.partial(construct, cfg.optim.schedule),
        objective=objective,
        seed=cfg.seed,
        weight_decay=cfg.optim.weight_decay,
        backbone_lr_scale=cfg.optim.backbone_lr_scale,
        alignment_lr_scale=cfg.optim.alignment_lr_scale,
        evaluation=evaluation,
        reward=CiderD(references) if rewards else None,
        artifacts={
            "format_version": FORMAT_VERSION,
            "fastcap_version": fastcap.__version__,
            "config": OmegaConf.to_container(cfg, resolve=True),
            "tokenizer": tokenizer.to_json(),
        },
    )


def build_trainer(
    cfg: DictConfig,
    run_dir: Path,
    overrides: Sequence[str] = (),
    job_type: str = "train",
    resumed: Mapping[str, Any] | None = None,
) -> L.Trainer:
    """Build the trainer with its loggers and callbacks, all of them writing under ``run_dir``.

    Args:
        cfg: The whole configuration.
        run_dir: The run's folder.
        overrides: What the command line changed: loggers name the run by it.
        job_type: ``train``, ``sweep`` for a job of a multirun, or ``eval``.
        resumed: What the checkpoint ``cfg.resume`` holds, where the run goes on from it.
    """
    quiet()
    run_dir.mkdir(parents=True, exist_ok=True)
    run = RunInfo(
        folder=run_dir,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        overrides=tuple(overrides),
        job_type=job_type,
        resume=Path(cfg.resume) if resumed else None,
        resumed_step=int(resumed["global_step"]) if resumed else 0,
    )
    callbacks = [instantiate(node) for node in (cfg.callbacks or {}).values() if node]
    loggers = [construct(node, run=run) for node in (cfg.logger or {}).values() if node]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if cfg.trainer.get("sync_batchnorm"):
        plugins.append(BatchNormSync())  # in the place of Lightning's, which knows GPUs only
    trainer: L.Trainer = construct(
        cfg.trainer,
        precision=run_precision(cfg.trainer),
        check_val_every_n_epoch=validation_interval(cfg.trainer),
        sync_batchnorm=False,
        plugins=plugins,
        logger=[logger for logger in loggers if logger is not None],
        callbacks=callbacks,
        default_root_dir=str(run_dir),
    )
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    return trainer


@torch.inference_mode(False)  # what inference makes could not be trained with; encoders are probed by gradients
def load_checkpoint(path: Path | str, overrides: Mapping[str, Any] | None = None) -> LoadedCheckpoint:
    """Rebuild the model of a checkpoint; the checkpoint alone is enough.

    Args:
        path: The file.
        overrides: Values by dotted key to put into its configuration first, e.g. ``refinement.num_steps``.

    Raises:
        CheckpointError: If the file is unusable, its weights do not fit its own configuration and vocabulary, or it
            would build what is no part of FastCap (``not_allowed``).
        ConfigError: If an override names no key of the configuration.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    config = OmegaConf.create(checkpoint["fastcap"]["config"])
    assert isinstance(config, DictConfig)
    if found := not_allowed(OmegaConf.to_container(config, resolve=True)):
        raise CheckpointError(f"{path}: field `fastcap.config.{found}")
    for key, value in (overrides or {}).items():
        override_config(config, key, value)
    tokenizer = CaptionTokenizer.from_json(checkpoint["fastcap"]["tokenizer"])
    model = build_model(config, tokenizer, fresh=False)
    # The shipped weights lack the text encoder, which captioning does not read, and what an encoder's package brings.
    state = {**model.alignment.text_encoder.state_dict(prefix="alignment.text_encoder."), **model_state(checkpoint)}
    left_out = model.state_dict().keys() - state.keys()
    if left_out and all(name.startswith("backbone.") and ".net." in name for name in left_out):
        given = build_backbone(config).state_dict()
        state |= {name: given[name.removeprefix("backbone.")] for name in left_out}
    embedding = state.get("decoder.word.weight")
    if embedding is not None and embedding.shape[0] != tokenizer.vocab_size:
        raise CheckpointError(
            f"{path}: field `state_dict.model.decoder.word.weight` holds {embedding.shape[0]} words, field "
            f"`fastcap.tokenizer` {tokenizer.vocab_size}: weights and vocabulary are of different runs"
        )
    fill(model, path, state)
    weighed = [name for name, weight in (config.refinement.get("ngram_weights") or {}).items() if weight > 0]
    if weighed and not model.ngrams.counted:
        raise CheckpointError(f"{path}: holds no counts of n-grams: it needs refinement.ngram_weights.{weighed[0]}=0")
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return LoadedCheckpoint(model.eval(), tokenizer, plain, Path(path))


def override_config(config: DictConfig, key: str, value: Any) -> None:
    """Set a key that is there, or that the class named beside it has since come to take.

    Raises:
        ConfigError: If there is no such key, naming those beside it.
    """
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    if isinstance(node, DictConfig) and "_target_" in node:
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        known += [p.name for p in parameters if p.default is not p.empty and p.name not in known]
    if leaf not in known:
        raise ConfigError(f"unknown key {key!r}; keys there: {', '.join(known) or 'none'}")
    OmegaConf.update(config, key, value, merge=False, force_add=True)
