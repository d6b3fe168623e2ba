"""Words chosen together, without torch: ``fastcap.generation.chain`` and ``fastcap.decoder.bigrams``, in numpy."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class BigramTable:
    """Counts of neighbours, as ``fastcap.decoder.bigrams.Bigrams`` keeps them.

    Attributes:
        pairs: The pairs that were counted, ascending. (n,)
        worth: What each is worth, in nats. (n,)
        unseen: What any other word is worth after each; the last is the boundary's. (V + 1,)
        phrases: Pairs that images learnt to name, as a * V + b, ascending. (P,)
    """

    pairs: np.ndarray
    worth: np.ndarray
    unseen: np.ndarray
    phrases: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def boundary(self) -> int:
        """The symbol of a caption's start and end."""
        return len(self.unseen) - 1

    @property
    def counted(self) -> bool:
        """Whether any captions were counted."""
        return len(self.pairs) > 0

    def named(self, probability: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Tell how probable it is that images' people write pairs; zero for what is no phrase.

        Args:
            probability: Of each phrase. (B, P)
            before: Word ids, the boundary for an end. (B, ...)
            after: Of the words that follow; both broadcast together. (B, ...)
        """
        if not len(self.phrases):
            return np.zeros(np.broadcast_shapes(before.shape, after.shape), np.float32)
        place = self.place(before, after)
        rows = np.arange(len(place)).reshape(-1, *[1] * (place.ndim - 1))
        return np.where(place < 0, np.float32(0), probability[rows, place])

    def place(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Where pairs stand among the phrases, of which there are some; -1 for what is none."""
        wanted = np.where(after < self.boundary, before * self.boundary + after, -1)
        at = np.minimum(np.searchsorted(self.phrases, wanted), len(self.phrases) - 1)
        return np.where(self.phrases[at] == wanted, at, -1)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Look pairs up; both broadcast together."""
        wanted = before * len(self.unseen) + after
        unseen = np.broadcast_to(self.unseen[before], wanted.shape)
        if not self.counted:
            return unseen
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[at] == wanted, self.worth[at], unseen)

    def write(self, path: Path) -> None:
        """Write the table, plain arrays."""
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in ("pairs", "worth", "unseen", "phrases")}
        np.savez_compressed(buffer, **arrays)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> BigramTable:
        """Read what ``write`` wrote; nothing is unpickled.

        Raises:
            ValueError: If it is anything else.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                table = cls(found["pairs"], found["worth"], found["unseen"], found["phrases"])
        except (OSError, KeyError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"not a table of neighbours ({error})") from error
        dimensions = table.pairs.ndim, table.unseen.ndim, table.phrases.ndim
        if table.pairs.shape != table.worth.shape or dimensions != (1, 1, 1):
            raise ValueError("not a table of neighbours (its arrays do not fit each other)")
        return table


@dataclass
class Links:
    """What neighbours gain by being neighbours, as ``fastcap.generation.chain.Links`` has it.

    Attributes:
        table: What pairs are worth.
        bigram_weight: Weight of what they are worth anywhere.
        phrase_weight: Weight of the images' phrases.
        phrases: Probability of each phrase. (B, P)
    """

    table: BigramTable
    bigram_weight: float
    phrase_weight: float
    phrases: np.ndarray

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Look pairs up. Ids of captions of B images, (B, ...); both broadcast together."""
        gain = np.float32(self.bigram_weight) * self.table(before, after)
        if self.phrase_weight == 0:
            return gain
        return gain + np.float32(self.phrase_weight) * self.table.named(self.phrases, before, after)

    def score(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Sum over the pairs of captions. (B, K, L) and (B, K) to (B, K)."""
        words = np.where(np.arange(tokens.shape[-1]) >= lengths[..., None], self.table.boundary, tokens)
        edge = np.full((*words.shape[:-1], 1), self.table.boundary)
        return self(np.concatenate([edge, words], -1), np.concatenate([words, edge], -1)).sum(-1, dtype=np.float32)


def choose_together(
    words: np.ndarray,
    log_probability: np.ndarray,
    tokens: np.ndarray,
    hidden: np.ndarray,
    pad: np.ndarray,
    links: Links,
) -> tuple[np.ndarray, np.ndarray]:
    """Take the best way through the choices of hidden words.

    Args:
        words: Choices of each position, likeliest first. (..., L, k)
        log_probability: Of each. (..., L, k)
        tokens: What stands already. (..., L)
        hidden: True where a word is to be chosen. (..., L)
        pad: True beyond each caption's end. (..., L)
        links: What neighbours gain.

    Returns:
        The words and their log-probabilities; they have no meaning where nothing is hidden. (..., L) twice
    """
    only = np.full(words.shape[-1], -np.inf, np.float32)
    only[0] = 0.0
    standing = np.where(pad, links.table.boundary, tokens)[..., None]
    open_ = hidden[..., None]
    words, value = np.where(open_, words, standing), np.where(open_, log_probability, only)
    end = np.full((*words.shape[:-2], 1, words.shape[-1]), links.table.boundary)
    after = np.concatenate([words, end], axis=-2)
    before = np.concatenate([end, words], axis=-2)
    gains = links(before[..., :, None], after[..., None, :])
    gains += np.concatenate([value, np.broadcast_to(only, end.shape)], axis=-2)[..., None, :]
    ahead, pointers = np.zeros(gains.shape[:-3] + gains.shape[-1:], np.float32), []
    for at in reversed(range(gains.shape[-3])):
        total = gains[..., at, :, :] + ahead[..., None, :]
        pointers.append(total.argmax(-1))
        ahead = total.max(-1)
    choice, way = np.zeros_like(pointers[0][..., :1]), []
    for pointer in reversed(pointers[1:]):
        choice = np.take_along_axis(pointer, choice, -1)
        way.append(choice)
    taken = np.stack(way, axis=-2)
    return tuple(np.take_along_axis(t, taken, -1)[..., 0] for t in (words, value))  # type: ignore[return-value]
