"""An exported model, run without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastcap.data.errors import DataError
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.serving.chain import BigramTable, Links
from fastcap.serving.folder import (
    BIGRAMS,
    TOKENIZER,
    ExportError,
    ModelFacts,
    folder_bytes,
    read_model,
    variant_folder,
)
from fastcap.serving.network import Decoded
from fastcap.serving.refine import expected_names, join, refine
from fastcap.serving.runtimes import Graph, LazyGraphs


class Graphs(Protocol):
    """Graphs by name."""

    def __getitem__(self, name: str) -> Graph:
        """Return a graph, ready to run."""


@dataclass
class EncodedGroup:
    """The images of a batch that one group of experts serves.

    Attributes:
        group: The group's number.
        rows: Its images in the batch. (B',)
        length_logits: Scores of the lengths 1..max_length. (B', max_length)
        named: Probability of each concept, then of each phrase. (B', C + P)
        cache: Inputs of its step graph that depend on the image alone.
    """

    group: int
    rows: np.ndarray
    length_logits: np.ndarray
    named: np.ndarray
    cache: dict[str, np.ndarray]


class ExportedNetwork:
    """Graphs behind the ``Network`` protocol.

    An image runs through the encoder, then through the graphs of its own experts alone.

    Args:
        facts: What the graphs are.
        graphs: The graphs by name.
        tokenizer: The tokenizer.
        bigrams: What neighbouring words are worth, and which are phrases.
        refinement: Other values for keys of the refinement settings.
        file_bytes: Size on disk.

    Raises:
        ValueError: If a refinement key is unknown or its value refused.
    """

    def __init__(
        self,
        facts: ModelFacts,
        graphs: Graphs,
        tokenizer: CaptionTokenizer,
        bigrams: BigramTable,
        refinement: Mapping[str, Any],
        file_bytes: int = 0,
    ) -> None:
        self.graphs = graphs
        self.settings = facts.settings.changed(refinement)
        if self.settings.num_choices > facts.settings.num_choices:
            raise ValueError(
                f"refinement.num_choices = {self.settings.num_choices}: this export scores {facts.settings.num_choices}"
            )
        if self.settings.bigram_weight > 0 and not bigrams.counted:
            raise ValueError("refinement.bigram_weight must be 0: this export holds no counts of neighbours")
        if self.settings.trigram_weight > 0 and not len(bigrams.triples):
            raise ValueError("refinement.trigram_weight must be 0: this export holds no counts of triples")
        if self.settings.phrase_weight > facts.settings.phrase_weight and not len(bigrams.phrases):
            raise ValueError("refinement.phrase_weight must be 0: this export holds no phrases")
        self.bigrams = bigrams
        self.special = facts.special_tokens
        self.image_size = facts.image_size
        self.num_steps: int | None = self.settings.num_steps
        self.tokenizer = tokenizer
        self.num_experts = sum(map(len, facts.groups))
        self._group_of = np.empty(self.num_experts, np.int64)
        for group, experts in enumerate(facts.groups):
            self._group_of[experts] = group
        self.info: dict[str, Any] = {
            "kind": facts.runtime,
            "precision": facts.precision,
            "parameters": facts.parameters,
            "file_bytes": file_bytes,
            "name": facts.name,
        }

    @cached_property
    def word_concepts(self) -> np.ndarray:
        """Concept (V,) behind each word, -1 for a word without one; found when first asked for."""
        return np.array(self.tokenizer.concepts(), np.int64)

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, list[EncodedGroup]]:
        """Return expert weights (B, E) and the groups. pixels: uint8, RGB (B, H, W, 3)."""
        outputs = self.graphs["encoder"]({"images": pixels})
        weights = outputs[2]
        of_image = self._group_of[weights.argmax(1)]
        groups = []
        for group in np.unique(of_image).tolist():
            groups.append(self.prepare(group, np.flatnonzero(of_image == group), outputs))
        return weights, groups

    def prepare(self, group: int, rows: np.ndarray, outputs: Sequence[np.ndarray]) -> EncodedGroup:
        """Compute what one group's graphs keep of some images of a batch, from the encoder's outputs."""
        if len(rows) < len(outputs[0]):
            outputs = [output[rows] for output in outputs]
        memory, length_logits, weights, concepts = outputs
        kept = self.graphs[f"prepare_{group}"]({"memory": memory, "expert_weights": weights})
        cache = {f"cache_{number}": value for number, value in enumerate(kept)}
        probability = 1.0 / (1.0 + np.exp(-concepts.astype(np.float32)))
        return EncodedGroup(group, rows, length_logits, probability, cache)

    def decode(
        self, encoded: tuple[np.ndarray, list[EncodedGroup]], num_steps: int | None, record_steps: bool
    ) -> Decoded:
        """Write the captions."""
        weights, groups = encoded
        settings = self.settings if num_steps is None else self.settings.changed({"num_steps": num_steps})
        parts = []
        for group in groups:
            step = self.graphs[f"step_{group.group}"]

            known = {"gain": self._gain(group.named), **group.cache}

            def predict(
                tokens: np.ndarray, lengths: np.ndarray, step: Graph = step, known: dict[str, np.ndarray] = known
            ) -> tuple[np.ndarray, np.ndarray]:
                words, log_probability = step({"tokens": tokens, "lengths": lengths, **known})
                return words, log_probability

            def naming(tokens: np.ndarray, lengths: np.ndarray, named: np.ndarray = group.named) -> np.ndarray:
                return expected_names(named, self.word_concepts, self.bigrams, tokens, lengths)

            of_phrases = group.named[:, group.named.shape[1] - len(self.bigrams.phrases) :]
            links = Links(
                self.bigrams, settings.bigram_weight, settings.phrase_weight, of_phrases, settings.trigram_weight
            )
            judges = links, naming
            part = refine(predict, group.length_logits, self.special, settings, record_steps, *judges)
            parts.append((group.rows, part))
        decoded = join(parts, self.special.pad)
        decoded.expert_weights = weights
        return decoded

    def _gain(self, named: np.ndarray) -> np.ndarray:
        """What the words' scores gain (B, V) from the probabilities of the image's concepts and phrases (B, C + P)."""
        if self.settings.concept_weight == 0:
            return np.zeros((len(named), self.tokenizer.vocab_size), np.float32)
        of_words = np.pad(named, ((0, 0), (1, 0)))[:, self.word_concepts + 1]
        return np.float32(self.settings.concept_weight) * of_words

    def text(self, tokens: list[int]) -> str:
        """Spell token ids out."""
        return self.tokenizer.decode(tokens)


def open_exported(path: Path, refinement: dict[str, Any], num_threads: int | None) -> ExportedNetwork:
    """Open an export folder, or one variant's folder.

    Args:
        path: The folder.
        refinement: Other values for keys of the refinement settings.
        num_threads: Threads that a graph may use; None leaves it to the runtime.

    Raises:
        ExportError: If the folder is unusable or its runtime is not installed.
        ValueError: If a refinement key is unknown or its value refused.
    """
    folder = variant_folder(path)
    facts = read_model(folder)
    try:
        tokenizer = CaptionTokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))
    except (DataError, OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{folder / TOKENIZER}: {error}") from error
    try:
        bigrams = BigramTable.read(folder / BIGRAMS)
        if bigrams.boundary != tokenizer.vocab_size:
            raise ValueError(f"of {bigrams.boundary} words, {TOKENIZER} holds {tokenizer.vocab_size}")
    except ValueError as error:
        raise ExportError(f"{folder / BIGRAMS}: {error}") from error
    graphs = LazyGraphs(folder, facts.runtime, facts.precision, num_threads)
    network = ExportedNetwork(facts, graphs, tokenizer, bigrams, refinement, folder_bytes(folder))
    _ = graphs["encoder"]  # a broken graph is to show at once
    return network
