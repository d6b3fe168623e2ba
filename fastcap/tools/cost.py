"""What a training recipe will take, before any GPU is rented: counted arithmetic, counted memory, assumed speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastcap.build import CONFIG_DIR, build_model
from fastcap.data.tokenizer import train_word_tokenizer
from fastcap.module import CaptioningModule
from fastcap.recipes import read_plan
from fastcap.tools.random_weights import any_phrases
from fastcap.types import CaptionBatch
from fastcap.utils.rng import ImageChance

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_STATE_BYTES = 16  # a parameter in training: weight, gradient and Adam's two moments, fp32
_PASSES = 4  # times that an activation crosses the memory bus: written, read forward, read backward, its gradient


@dataclass(frozen=True)
class Assumptions:
    """What is not counted but assumed.

    Attributes:
        images: Training images; Karpathy's COCO has 113,287.
        num_words: Vocabulary; words that COCO's training captions hold five times or more are about 10,000.
        num_phrases: Phrases, where there are any: as Flickr8k's 1,700 and the share of captions that hold one suggest.
        caption_tokens: Tokens of a caption, about COCO's mean.
        devices: GPUs.
        tflops: Peak of one GPU in the recipe's precision; 312 is NVIDIA's figure for an A100 in bf16.
        utilisation: Share of that peak that is reached: a guess, for small products between many small operations.
        bandwidth_tb: Memory bandwidth of one GPU; 1.6 TB/s is an A100's with 40 GB.
    """

    images: int = 113_287
    num_words: int = 10_000
    num_phrases: int = 3000
    caption_tokens: int = 12
    devices: int = 1
    tflops: float = 312.0
    utilisation: float = 0.1
    bandwidth_tb: float = 1.6


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    Attributes:
        image_size: Side of the images, in pixels.
        batch_size: Images of a process's batch.
        epochs: Epochs.
        parameters_m: Parameters, in millions.
        gflop_per_image: Forward and backward pass: matrix products, convolutions, attention.
        activation_mb_per_image: Tensors kept for the backward pass, in MB.
        state_gb: Weights, gradients and Adam's moments, and what is kept once whatever the batch (weights in lower
            precision, indices), in GB.
        memory_gb: State and activations of one process without sharding, in GB: a GPU needs some more for what lives
            only within an operation and for its libraries.
        compute_hours: Hours by arithmetic.
        traffic_hours: Hours by activations crossing the memory bus.
        hours: The longer of both, on all GPUs; validation, captions that are written and starting up are not in it.
        images_per_s: What the loaders then have to deliver.
    """

    image_size: int
    batch_size: int
    epochs: int
    parameters_m: float
    gflop_per_image: float
    activation_mb_per_image: float
    state_gb: float
    memory_gb: float
    compute_hours: float
    traffic_hours: float
    hours: float
    images_per_s: float


def estimate(overrides: Sequence[str], assumptions: Assumptions) -> dict[str, Cost]:
    """Estimate each training of ``conf/train.yaml``: those of its recipe by the stages' names, or the one there is.

    Args:
        overrides: As ``fastcap train`` takes them, ``experiment=coco_base``.
        assumptions: What is not counted.

    Raises:
        RecipeError: If the recipe cannot be followed.
    """
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
        trainings = {"training": cfg}
        if cfg.recipe is not None:
            stages = read_plan(cfg.recipe, overrides)
            places = {stage.name: Path("run") / stage.folder for stage in stages}
            trainings = {
                stage.name: compose("train", overrides=stage.command(places)[1:])
                for stage in stages
                if stage.job == "train"
            }
    return {name: _estimate(cfg, assumptions) for name, cfg in trainings.items()}


def _estimate(cfg: DictConfig, assumptions: Assumptions) -> Cost:
    """Estimate one training.

    Passes over one image and over two are run on the CPU, in the training's precision and mode: what they differ by is
    an image's share, the rest is kept once.
    """
    module = _module(cfg, assumptions)
    one, two = (_count(module, cfg, assumptions, size) for size in (1, 2))
    gflop, activation = two[0] - one[0], two[1] - one[1]
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    state = 4 * sum(p.numel() for p in module.parameters()) + (_STATE_BYTES - 4) * parameters + one[1] - activation
    seen, batch = assumptions.images * cfg.trainer.max_epochs, int(cfg.data.batch_size)
    compute = seen * gflop / (1e3 * assumptions.tflops * assumptions.utilisation * assumptions.devices) / 3600
    traffic = seen * _PASSES * activation / (1e12 * assumptions.bandwidth_tb * assumptions.devices) / 3600
    hours = max(compute, traffic)
    return Cost(
        image_size=int(cfg.data.image_size),
        batch_size=batch,
        epochs=int(cfg.trainer.max_epochs),
        parameters_m=sum(p.numel() for p in module.parameters()) / 1e6,
        gflop_per_image=gflop,
        activation_mb_per_image=activation / 1e6,
        state_gb=state / 1e9,
        memory_gb=(state + batch * activation) / 1e9,
        compute_hours=compute,
        traffic_hours=traffic,
        hours=hours,
        images_per_s=seen / hours / 3600,
    )


def describe(cost: Cost, assumptions: Assumptions) -> str:
    """An estimate of one training in words."""
    gpus = f"{assumptions.devices} GPU{'s' * (assumptions.devices > 1)}"
    return (
        f"{cost.parameters_m:.1f} M parameters, {cost.gflop_per_image:.1f} GFLOP and "
        f"{cost.activation_mb_per_image:.0f} MB kept an image of {cost.image_size} px, forward and backward\n"
        f"{cost.memory_gb:.1f} GB of memory a process with {cost.batch_size} images a batch, {cost.state_gb:.1f} of "
        "them for weights, gradients and Adam's moments; more while an operation lasts\n"
        f"{cost.hours:.1f} hours for {cost.epochs} epochs of {assumptions.images:,} images on {gpus}, where "
        f"{assumptions.utilisation:.0%} of {assumptions.tflops:.0f} TFLOP/s are reached ({cost.compute_hours:.1f} h) "
        f"and {assumptions.bandwidth_tb} TB/s ({cost.traffic_hours:.1f} h); validation is not in it\n"
        f"{cost.images_per_s:.0f} images a second are then to be loaded"
    )


def facts(overrides: Sequence[str], assumptions: Assumptions) -> dict[str, Any]:
    """What an estimate rests on."""
    return {"overrides": list(overrides), "assumptions": asdict(assumptions), "torch": torch.__version__}


def _module(cfg: DictConfig, given: Assumptions) -> CaptioningModule:
    words = " ".join(f"w{index}" for index in range(given.num_words))
    tokenizer = train_word_tokenizer([words], min_frequency=1)
    torch.manual_seed(0)
    phrases = any_phrases(tokenizer, given.num_phrases) if cfg.data.phrase_mentions else None
    model = build_model(cfg, tokenizer, phrases=phrases, fresh=False)
    optimizer, schedule = instantiate(cfg.optim.optimizer), instantiate(cfg.optim.schedule)
    objective = instantiate(cfg.objective)
    module = CaptioningModule(
        model, tokenizer.special, tokenizer.decode, optimizer, schedule, objective, reward=_no_reward
    )
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    return module.train()


def _no_reward(image_ids: Sequence[int], captions: Sequence[Sequence[int]]) -> list[float]:
    return [0.0] * len(captions)


def _count(module: CaptioningModule, cfg: DictConfig, given: Assumptions, size: int) -> tuple[float, float]:
    """GFLOP of a training step on ``size`` images, and the bytes that it keeps for its backward pass."""
    captions, length = int(cfg.data.captions_per_image), min(given.caption_tokens, int(cfg.data.max_length))
    batch = CaptionBatch(
        torch.randint(0, 256, (size, 3, cfg.data.image_size, cfg.data.image_size), dtype=torch.uint8),
        torch.arange(size),
        torch.randint(len(module.special.ids), given.num_words, (size, captions, length)),
        torch.full((size, captions), length),
    )
    dtype = _DTYPES.get(str(cfg.trainer.precision))
    lower = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
    kept: dict[int, int] = {}
    # Attention as plain matrix products: the counter knows no fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with lower, _noting(kept, module):
            loss = module.losses(batch, ImageChance(0, 0, batch.image_ids))[0]["total"]
        loss.backward()
    module.zero_grad()
    return counter.get_total_flops() / 1e9, float(sum(kept.values()))


@contextlib.contextmanager
def _noting(kept: dict[int, int], module: CaptioningModule) -> Iterator[None]:
    """Note the bytes of every storage that is kept for a backward pass, weights and buffers left aside."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield
