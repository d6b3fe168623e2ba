"""The trained modules, cut into graphs: an encoder, and for each group of experts what is prepared and one step.

Nothing is computed otherwise than in training: the graphs call the backbone's, the alignment's and the decoder's own
code. Where each image uses one expert (top_k = 1), every expert has graphs of its own, so that at inference only the
chosen expert's weights are read; where it uses several, one pair of graphs holds and weighs all of them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastcap.decoder.moe import ExpertCache, Routing
from fastcap.decoder.moe_decoder import DecoderCache, DecoderLayer, MoEDecoder
from fastcap.model import FastCap
from fastcap.types import SpecialTokens

BANNED = -1e9  # added to the scores of special tokens: they are never written


class Encoder(nn.Module):
    """Images to all that depends on them alone and that every group of experts shares."""

    def __init__(self, model: FastCap) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: uint8, RGB. (B, H, W, 3)

        Returns:
            Memory (B, N, D), length logits (B, max_length), expert weights (B, E), and the logits of concepts and
            phrases (B, C + P).
        """
        memory, seen = self.model.encode(images.permute(0, 3, 1, 2))
        alignment, weights = self.model.alignment, self.model.decoder.gate(memory).weights
        return (
            memory,
            self.model.length(memory),
            weights,
            alignment.concept_logits(seen),
        )


class Prepare(nn.Module):
    """Image memory to what decoding keeps of an image: its context, and each layer's values of a group's experts."""

    def __init__(self, decoder: MoEDecoder, experts: list[int]) -> None:
        super().__init__()
        self.decoder, self.experts = decoder, experts

    def forward(self, memory: Tensor, expert_weights: Tensor) -> tuple[Tensor, ...]:
        """memory: (B, N, D), expert_weights: (B, E); returns one tensor a cache entry, each (B, ...)."""
        cache = [self.decoder.context(memory.mean(1, keepdim=True)), expert_weights[:, self.experts]]
        for layer in self.decoder.layers:
            for expert in self.experts:
                cache += self.mixture(layer).experts[expert].prepare(memory)
        return tuple(cache)

    @staticmethod
    def mixture(layer: nn.Module) -> Any:
        """The experts of a layer."""
        return cast(DecoderLayer, layer).mixture


class Step(nn.Module):
    """One refinement step: score every position, and pick the likeliest words at each."""

    ban: Tensor

    def __init__(
        self,
        decoder: MoEDecoder,
        experts: list[int],
        special: SpecialTokens,
        num_choices: int,
        values_per_expert: int,
    ) -> None:
        super().__init__()
        self.decoder, self.experts, self.values_per_expert = decoder, experts, values_per_expert
        self.num_choices = min(num_choices, decoder.vocab_size)
        ban = torch.zeros(decoder.vocab_size)
        ban[list(special.ids)] = BANNED
        self.register_buffer("ban", ban, persistent=False)

    def forward(
        self, tokens: Tensor, lengths: Tensor, gain: Tensor, cache: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Pick words.

        Args:
            tokens: Caption ids, some of them [MASK], K captions an image. (B, K, L)
            lengths: Content tokens of each caption. (B, K)
            gain: What the words' scores gain from the image's concepts. (B, V)
            cache: From ``Prepare`` on the B images.

        Returns:
            The likeliest words of each position, the best first, and their log-probabilities, both (B, K, L, k).
        """
        context, weights, *values = cache
        layers = []
        for number in range(len(self.decoder.layers)):
            entries = []
            for place, expert in enumerate(self.experts):
                at = (number * len(self.experts) + place) * self.values_per_expert
                prepared = tuple(values[at : at + self.values_per_expert])
                entries.append(ExpertCache(expert, None, weights[:, place, None, None], prepared))
            layers.append(entries)
        pad = torch.arange(tokens.shape[2], device=tokens.device) >= lengths.unsqueeze(-1)
        logits = self.decoder.denoise(
            tokens.flatten(0, 1), pad.flatten(0, 1), DecoderCache(Routing(weights), context, layers)
        )
        logits = logits.unflatten(0, tokens.shape[:2]) + (self.ban + gain)[:, None, None]
        value, words = logits.topk(self.num_choices, dim=-1)
        return words, value - logits.logsumexp(-1, keepdim=True)


@dataclass
class GraphSource:
    """A module ready to be exported.

    Attributes:
        module: The module.
        inputs: Example inputs, of more than one image: what is one in the example would be fixed.
        names: Names of the inputs.
        outputs: Names of the outputs.
        shapes: Which dimensions may vary, as ``torch.export`` wants it.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    names: list[str]
    outputs: list[str]
    shapes: tuple[Any, ...]


def expert_groups(decoder: MoEDecoder) -> list[list[int]]:
    """Group the experts: each by itself where an image uses one, else all together."""
    experts = list(range(decoder.num_experts))
    return [[expert] for expert in experts] if decoder.gate.top_k == 1 else [experts]


def graph_sources(model: FastCap, image_size: int) -> Iterator[tuple[str, GraphSource]]:
    """Cut a model with a ``MoEDecoder``, in evaluation mode, into named graphs."""
    decoder = cast(MoEDecoder, model.decoder)
    batch, candidates, length = Dim("batch"), Dim("candidates"), Dim("length", max=decoder.max_length)
    images = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        encoder = Encoder(model)
        memory, _, weights, _ = encoder(images)
        yield (
            "encoder",
            GraphSource(encoder, (images,), ["images"], ["memory", "lengths", "experts", "concepts"], ({0: batch},)),
        )
        tokens = torch.full((2, 3, min(5, decoder.max_length)), model.refinement.special.mask)
        lengths = torch.full((2, 3), tokens.shape[2])
        candidate_shapes = ({0: batch, 1: candidates, 2: length}, {0: batch, 1: candidates})
        for group, experts in enumerate(expert_groups(decoder)):
            prepare = Prepare(decoder, experts)
            cache = prepare(memory, weights)
            names = [f"cache_{number}" for number in range(len(cache))]
            rows = {0: batch}
            yield (
                f"prepare_{group}",
                GraphSource(prepare, (memory, weights), ["memory", "expert_weights"], names, (rows, rows)),
            )
            per_expert = (len(cache) - 2) // (len(decoder.layers) * len(experts))
            step = Step(decoder, experts, model.refinement.special, model.refinement.num_choices, per_expert)
            shapes = (*candidate_shapes, rows, (rows,) * len(cache))
            gain = torch.zeros(2, decoder.vocab_size)
            yield (
                f"step_{group}",
                GraphSource(
                    step,
                    (tokens, lengths, gain, cache),
                    ["tokens", "lengths", "gain", *names],
                    ["words", "log_probability"],
                    shapes,
                ),
            )


def write_onnx(source: GraphSource, path: Path) -> None:
    """Trace a module and write it as one ONNX file."""
    with _quietly(), torch.no_grad():
        torch.onnx.export(
            source.module.eval(),
            source.inputs,
            path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=source.names,
            output_names=source.outputs,
            dynamic_shapes=source.shapes,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks to itself: they are about how it works, and errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
