"""Bigram and trigram language model of the training captions, for shallow fusion.

Words that are chosen in parallel are chosen without knowing of each other. Counts of neighbours tie them together again
when a draft is read off the lattice (``fastcap.generation.crf``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BIGRAM_PRIOR = 10.0  # pseudo-count of the words after each word, distributed as words are on the whole
TRIGRAM_PRIOR = 3.0  # pseudo-count of the words after each bigram, distributed as words are after its second word
MAX_TRIGRAMS = 400_000  # beyond, the rarest are dropped: the tables are part of every exported model
_TABLES = ("bigrams", "bigram_scores", "bigram_backoff", "trigrams", "trigram_scores", "trigram_backoff")


class NGrams(nn.Module):
    """Scores of neighbouring words: how much likelier a word is in its context than in a shorter one, in nats.

    A bigram scores log P(b | a) - log P(b), its pointwise mutual information; a trigram log P(c | a, b) - log P(c | b).
    Both conditional distributions have a Dirichlet prior, the next shorter one (MacKay and Peto 1995). The start and
    the end of a caption are one further symbol, ``boundary``. No trigram has the boundary in its middle.

    Nothing here is a parameter. The tables are counted when a model is made for its training captions and are kept in
    its checkpoints as buffers; before, every score is zero. They are compact because an exported model carries them: a
    trigram is stored as the place of its first two words in the table of bigrams, and its last word.

    Args:
        vocab_size: Words V, special tokens included.
    """

    bigrams: Tensor  # a * (V + 1) + b, ascending (n,)
    bigram_scores: Tensor  # (n,)
    bigram_backoff: Tensor  # score of a word never seen after each word (V + 1,)
    trigrams: Tensor  # (place of the bigram a b) * (V + 1) + c, ascending (m,)
    trigram_scores: Tensor  # (m,)
    trigram_backoff: Tensor  # score of a word never seen after each bigram (n,)

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.boundary = vocab_size
        for name in _TABLES:
            self.register_buffer(name, torch.zeros(1, dtype=torch.float16))
        self.bigram_backoff = torch.zeros(vocab_size + 1, dtype=torch.float16)
        # One entry that is never looked up: no table is ever empty.
        self.bigrams = self.trigrams = torch.full((1,), -1, dtype=torch.int32)

    @property
    def counted(self) -> bool:
        """Whether any captions were counted."""
        return bool(self.bigrams[-1] >= 0)

    def count(
        self, captions: Iterable[Sequence[int]], text: Iterable[Sequence[int]] = (), text_weight: float = 1.0
    ) -> None:
        """Count captions, given as token ids, in the place of any counted before.

        Args:
            captions: Captions of the training images.
            text: Further captions, without images.
            text_weight: How much one of those counts.
        """
        edge, symbols = self.boundary, self.boundary + 1
        groups = [[[*ids, edge] for ids in group if len(ids)] for group in (captions, text)]
        sizes = [sum(map(len, group)) for group in groups]
        flat = np.array([edge, *itertools.chain.from_iterable(itertools.chain(*groups))], np.int64)
        weight = np.repeat([1.0, text_weight], sizes)  # of each symbol but the first

        # Bigrams: counts, and the smoothed conditional over the unigram.
        bigrams, counts = _counts(flat[:-1] * symbols + flat[1:], weight)
        before, after = np.divmod(bigrams, symbols)
        total = np.bincount(flat[:-1], weight, minlength=symbols)
        unigram = np.bincount(flat[1:], weight, minlength=symbols) / max(weight.sum(), 1)
        backoff = np.log(BIGRAM_PRIOR / (total + BIGRAM_PRIOR))
        scores = backoff[before] + np.log1p(counts / (BIGRAM_PRIOR * unigram[after]))

        # Trigrams: none reaches over a boundary. Those after a bigram stand in one row of the table.
        places = np.searchsorted(bigrams, flat[:-1] * symbols + flat[1:])
        inside = flat[1:-1] != edge
        trigrams, triple_counts = _counts(places[:-1][inside] * symbols + flat[2:][inside], weight[1:][inside])
        context, third = np.divmod(trigrams, symbols)
        triple_total = np.bincount(context, triple_counts, minlength=len(bigrams))
        triple_backoff = np.log(TRIGRAM_PRIOR / (triple_total + TRIGRAM_PRIOR))
        shorter = scores[np.searchsorted(bigrams, after[context] * symbols + third)]  # every such bigram was counted
        expected = TRIGRAM_PRIOR * np.exp(shorter) * unigram[third]
        triple_scores = triple_backoff[context] + np.log1p(triple_counts / expected)
        if len(trigrams) > MAX_TRIGRAMS:
            kept = np.sort(np.argsort(-triple_counts, kind="stable")[:MAX_TRIGRAMS])
            trigrams, triple_scores = trigrams[kept], triple_scores[kept]

        # Padding follows the end, and scores zero.
        bigrams, scores = np.append(bigrams, edge * symbols + edge), np.append(scores, 0.0)
        triple_backoff = np.append(triple_backoff, 0.0)
        ids = np.int32 if max(len(bigrams), symbols) * symbols < 2**31 else np.int64
        tables = (bigrams.astype(ids), scores, backoff, trigrams.astype(ids), triple_scores, triple_backoff)
        for name, value in zip(_TABLES, tables, strict=True):
            kept_as = value if value.dtype == ids else value.astype(np.float16)
            kept_as = kept_as if len(kept_as) else getattr(NGrams(0), name).numpy()
            setattr(self, name, torch.from_numpy(kept_as).to(self.bigrams.device))

    def find(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the place of each bigram, -1 where it was never counted. Word ids, which broadcast together."""
        return find(self.bigrams, before * (self.boundary + 1) + after)

    def bigram(self, before: Tensor, found: Tensor) -> Tensor:
        """Score bigrams: the first word's ids, and their places from ``find``, which broadcast together."""
        scores = take(self.bigram_scores, found.clamp(min=0))
        return torch.where(found >= 0, scores, take(self.bigram_backoff, before)).float()

    def trigram(self, found: Tensor, third: Tensor) -> Tensor:
        """Score trigrams, zero after a bigram that was never counted.

        Args:
            found: Places of the first two words, from ``find``.
            third: The last word's ids; they broadcast with the places.
        """
        place = find(self.trigrams, found * (self.boundary + 1) + third)
        scores, backoff = take(self.trigram_scores, place.clamp(min=0)), take(self.trigram_backoff, found.clamp(min=0))
        scores = torch.where(place >= 0, scores, backoff)
        return torch.where(found >= 0, scores, 0.0).float()

    def unseen(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tell which captions hold a bigram that was never counted ("a dogs"), the end left aside. Bool, (B,)."""
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        after = tokens.masked_fill(ahead >= lengths.unsqueeze(1), self.boundary)
        before = F.pad(after, (1, 0), value=self.boundary)[:, :-1]
        return ((self.find(before, after) < 0) & (after != self.boundary)).any(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over tables of any size."""
        for name in _TABLES:
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and (given.shape != own.shape or given.dtype != own.dtype):
                setattr(self, name, torch.empty_like(given, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _counts(codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct codes, ascending, and the sum of each one's weights."""
    found, place = np.unique(codes, return_inverse=True)
    return found, np.bincount(place, weights, minlength=len(found))


def find(table: Tensor, wanted: Tensor) -> Tensor:
    """Look ids up in an ascending table that is not empty.

    Args:
        table: Ids in ascending order. (n,)
        wanted: Ids to look up, of any shape.

    Returns:
        The place of each id, -1 where it is not there. Shape of ``wanted``.
    """
    if torch.onnx.is_in_onnx_export():  # a hash table; fastcap.serving.onnx_edits makes attributes of its second input
        labels = "ai.onnx.ml::LabelEncoder", (wanted, table)
        return torch.onnx.ops.symbolic(*labels, dtype=torch.long, shape=wanted.shape, version=4)
    place = torch.searchsorted(table, wanted.to(table.dtype)).clamp_(max=table.shape[0] - 1)
    return torch.where(take(table, place) == wanted, place, -1)


def take(table: Tensor, place: Tensor) -> Tensor:
    """Read a table, (n,), at places of any shape."""
    return table.index_select(0, place.flatten()).view(place.shape)
