"""Which words follow each other, counted in the training captions.

Words that are chosen in parallel are chosen without knowing of each other; counts of neighbours are what ties them
together again when a draft is read off (``fastcap.generation.chain``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTHING = 10.0  # imagined words after each word, shared out as words are on the whole


class Bigrams(nn.Module):
    """How much likelier a word is after another one than anywhere: log P(b | a) - log P(b), their mutual information.

    P(b | a) is smoothed by P(b) (a Dirichlet prior, MacKay and Peto 1995). The start and the end of a caption are one
    further symbol, V. Nothing here is a parameter: it is counted once, when a model is made for its training captions,
    and kept in its checkpoints. Until then every pair is worth nothing.

    Args:
        vocab_size: Words V, special tokens included.
    """

    pairs: Tensor  # the pairs that were counted, as a * (V + 1) + b, ascending (n,)
    worth: Tensor  # what each of them is worth (n,)
    unseen: Tensor  # what any other word is worth after each (V + 1,)

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.boundary = vocab_size
        self.register_buffer("pairs", torch.zeros(0, dtype=torch.long))
        self.register_buffer("worth", torch.zeros(0))
        self.register_buffer("unseen", torch.zeros(vocab_size + 1))

    @property
    def counted(self) -> bool:
        """Whether any captions were counted."""
        return self.pairs.numel() > 0

    def count(self, captions: Iterable[Sequence[int]]) -> None:
        """Count captions, given as token ids, in the place of any counted before."""
        symbols = self.boundary + 1
        words = [[*ids, self.boundary] for ids in captions if len(ids)]
        flat = np.array([self.boundary, *itertools.chain.from_iterable(words)], np.int64)
        pairs, counts = np.unique(flat[:-1] * symbols + flat[1:], return_counts=True)
        before, after = np.divmod(pairs, symbols)
        total = np.bincount(flat[:-1], minlength=symbols)
        share = np.bincount(flat[1:], minlength=symbols) / max(len(flat) - 1, 1)
        unseen = np.log(SMOOTHING / (total + SMOOTHING))
        worth = unseen[before] + np.log1p(counts / (SMOOTHING * share[after]))
        # Nothing follows the end but more of it: padding is worth nothing.
        pairs, worth = np.append(pairs, self.boundary * symbols + self.boundary), np.append(worth, 0.0)
        device = self.pairs.device
        self.pairs = torch.from_numpy(pairs).to(device)
        self.worth = torch.from_numpy(worth.astype(np.float32)).to(device)
        self.unseen = torch.from_numpy(unseen.astype(np.float32)).to(device)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Look pairs up, in nats. Ids, V for the boundary; both broadcast together."""
        unseen = self.unseen[before]
        if not self.counted:
            return unseen.expand(torch.broadcast_shapes(before.shape, after.shape))
        place, known = find(self.pairs, before * (self.boundary + 1) + after)
        return torch.where(known, self.worth[place], unseen)

    def strange(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tell which captions hold a pair that was never counted ("a dogs"), ends left aside. Returns bool (B,)."""
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        after = tokens.masked_fill(ahead >= lengths.unsqueeze(1), self.boundary)
        before = F.pad(after, (1, 0), value=self.boundary)[:, :-1]
        return (~torch.isin(before * (self.boundary + 1) + after, self.pairs) & (after != self.boundary)).any(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take over tables of any size."""
        for name in ("pairs", "worth", "unseen"):
            own = getattr(self, name)
            found = state_dict.get(prefix + name, own)
            if found.shape != own.shape and name != "unseen":
                setattr(self, name, torch.empty_like(found, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def find(table: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Look ids up in an ascending table that is not empty: where they stand, and whether they do."""
    place = torch.searchsorted(table, wanted).clamp_(max=table.numel() - 1)
    return place, table[place] == wanted
