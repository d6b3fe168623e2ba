"""Which words follow two others, counted in the training captions: what pairs of neighbours leave unsaid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcap.decoder.bigrams import find
from fastcap.types import Neighbours

STRENGTH = 3.0  # imagined words after each pair, shared out as words are after its second one
_TABLES = {"contexts": torch.long, "unseen": torch.float32, "triples": torch.long, "worth": torch.float32}


class Trigrams(nn.Module):
    """How much likelier a word is after two others than after the last of them: log P(c | a, b) - log P(c | b).

    "in a" and "a jumping" are common, "in a jumping" is not. P(c | a, b) is smoothed by P(c | b), as that is by P(c) in
    ``Bigrams`` (a hierarchy of Dirichlet priors, MacKay and Peto 1995). What follows a caption's start or end alone is
    worth nothing: pairs say all of it. Nothing here is a parameter: it is counted when a model is made for its training
    captions, and kept in its checkpoints. Until then every triple is worth nothing.

    Args:
        vocab_size: Words V, special tokens included.
    """

    contexts: Tensor  # the pairs that something was counted after, as a * (V + 1) + b, ascending (m,)
    unseen: Tensor  # what any other word is worth after each of them (m,)
    triples: Tensor  # the triples that were counted, as (a * (V + 1) + b) * (V + 1) + c, ascending (n,)
    worth: Tensor  # what each of them is worth (n,)

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.boundary = vocab_size
        for name, kind in _TABLES.items():
            self.register_buffer(name, torch.zeros(0, dtype=kind))

    @property
    def counted(self) -> bool:
        """Whether any captions were counted."""
        return self.triples.numel() > 0

    def count(self, captions: Iterable[Sequence[int]], bigrams: Neighbours) -> None:
        """Count captions, given as token ids, in the place of any counted before.

        Args:
            captions: The captions.
            bigrams: Their pairs, counted.
        """
        edge, symbols = self.boundary, self.boundary + 1
        words = [np.array([edge, *ids, edge], np.int64) for ids in captions if len(ids)]
        if not words:
            return
        coded = np.concatenate([(ids[:-2] * symbols + ids[1:-1]) * symbols + ids[2:] for ids in words])
        triples, counts = np.unique(coded, return_counts=True)
        contexts, start, number = np.unique(triples // symbols, return_index=True, return_counts=True)
        unseen = np.log(STRENGTH / (np.add.reduceat(counts, start) + STRENGTH))
        before, after = np.divmod(triples % symbols**2, symbols)
        followers = np.bincount(np.concatenate([ids[1:] for ids in words]), minlength=symbols)
        pairs = bigrams(torch.from_numpy(before), torch.from_numpy(after)).double().numpy()
        expected = np.exp(pairs) * (followers / followers.sum())[after]
        worth = np.repeat(unseen, number) + np.log1p(counts / (STRENGTH * expected))
        device = self.triples.device
        for name, value in (("contexts", contexts), ("unseen", unseen), ("triples", triples), ("worth", worth)):
            setattr(self, name, torch.from_numpy(value).to(device, _TABLES[name]))

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        """Look triples up, in nats. Ids, V for the boundary; all broadcast together."""
        symbols = self.boundary + 1
        context = first * symbols + second
        wanted = context * symbols + third
        if not self.counted:
            return torch.zeros_like(wanted, dtype=self.worth.dtype)
        place, known = find(self.contexts, context)
        unseen = self.unseen[place] * known
        place, known = find(self.triples, wanted)
        return torch.where(known, self.worth[place], unseen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over tables of any size."""
        for name in _TABLES:
            own = getattr(self, name)
            found = state_dict.get(prefix + name, own)
            if found.shape != own.shape:
                setattr(self, name, torch.empty_like(found, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
