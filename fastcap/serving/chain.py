"""Words chosen together, without torch: ``fastcap.generation.chain`` and ``fastcap.decoder.bigrams``, in numpy."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
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
        triples: The triples that were counted (``fastcap.decoder.trigrams``), ascending. (n3,)
        triple_worth: What each is worth beyond its pair. (n3,)
        contexts: The pairs that something was counted after, ascending. (m,)
        context_unseen: What any other word is worth after each. (m,)
    """

    pairs: np.ndarray
    worth: np.ndarray
    unseen: np.ndarray
    phrases: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    triples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    triple_worth: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    contexts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    context_unseen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

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
        at, known = _find(self.phrases, wanted)
        return np.where(known, at, -1)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Look pairs up; both broadcast together."""
        wanted = before * len(self.unseen) + after
        unseen = np.broadcast_to(self.unseen[before], wanted.shape)
        if not self.counted:
            return unseen
        at, known = _find(self.pairs, wanted)
        return np.where(known, self.worth[at], unseen)

    def three(self, first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
        """Look triples up, of which some were counted; all broadcast together."""
        context = first * len(self.unseen) + second
        at, known = _find(self.contexts, context)
        unseen = np.where(known, self.context_unseen[at], np.float32(0))
        at, known = _find(self.triples, context * len(self.unseen) + third)
        found = np.where(known, self.triple_worth[at], unseen)
        return np.where(second == self.boundary, np.float32(0), found)

    def write(self, path: Path) -> None:
        """Write the table, plain arrays."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{item.name: getattr(self, item.name) for item in fields(self)})
        path.write_bytes(buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> BigramTable:
        """Read what ``write`` wrote; nothing is unpickled.

        Raises:
            ValueError: If it is anything else.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                table = cls(**{item.name: found[item.name] for item in fields(cls)})
        except (OSError, KeyError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"not a table of neighbours ({error})") from error
        aligned = [("pairs", "worth"), ("triples", "triple_worth"), ("contexts", "context_unseen")]
        flat = all(getattr(table, item.name).ndim == 1 for item in fields(table))
        if not flat or any(getattr(table, a).shape != getattr(table, b).shape for a, b in aligned):
            raise ValueError("not a table of neighbours (its arrays do not fit each other)")
        return table


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Look ids up in an ascending table that is not empty: where they stand, and whether they do."""
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return at, table[at] == wanted


@dataclass
class Links:
    """What neighbours gain by being neighbours, as ``fastcap.generation.chain.Links`` has it.

    Attributes:
        table: What pairs are worth.
        bigram_weight: Weight of what they are worth anywhere.
        phrase_weight: Weight of the images' phrases.
        phrases: Probability of each phrase. (B, P)
        trigram_weight: Weight of what three words in a row are worth beyond their pairs.
    """

    table: BigramTable
    bigram_weight: float
    phrase_weight: float
    phrases: np.ndarray
    trigram_weight: float = 0.0

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Look pairs up. Ids of captions of B images, (B, ...); both broadcast together."""
        gain = np.float32(self.bigram_weight) * self.table(before, after)
        if self.phrase_weight == 0:
            return gain
        return gain + np.float32(self.phrase_weight) * self.table.named(self.phrases, before, after)


def choose_together(
    words: np.ndarray,
    log_probability: np.ndarray,
    tokens: np.ndarray,
    hidden: np.ndarray,
    pad: np.ndarray,
    links: Links,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the best way through the choices of hidden words.

    Args:
        words: Choices of each position, likeliest first. (..., L, k)
        log_probability: Of each. (..., L, k)
        tokens: What stands already. (..., L)
        hidden: True where a word is to be chosen. (..., L)
        pad: True beyond each caption's end. (..., L)
        links: What neighbours gain.

    Returns:
        The words and their log-probabilities, without meaning where nothing is hidden, (..., L) twice, and what whole
        captions are worth beyond them (...).
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
    if links.trigram_weight > 0:
        first = np.concatenate([end, before[..., :-1, :]], axis=-2)
        three = first[..., None, None], before[..., None, :, None], after[..., None, None, :]
        gains = gains[..., None, :, :] + np.float32(links.trigram_weight) * links.table.three(*three)
    return _best_way(words, value, gains)


def _best_way(words: np.ndarray, value: np.ndarray, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The way of the highest sum; a state is the last choice, or the last two as one number.

    Args:
        words: Choices of each position. (..., L, k)
        value: Log-probability of each. (..., L, k)
        gains: Of going on to each choice from the one or the two before. (..., L + 1, k, k) or (..., L + 1, k, k, k)

    Returns:
        The words of the way and their log-probabilities, (..., L) twice, and its sum less theirs (...).
    """
    batch, k = words.ndim - 2, words.shape[-1]
    steps = np.moveaxis(gains, batch, 0)
    ahead, pointers = np.zeros(steps.shape[1 : batch + 1] + steps.shape[batch + 2 :], np.float32), []
    for gain in steps[::-1]:
        total = gain + np.expand_dims(ahead, batch)
        ahead = total.max(-1)
        pointers.append(total.argmax(-1).reshape(*words.shape[:batch], -1))
    state, way = np.zeros_like(pointers[0][..., :1]), []
    for pointer in reversed(pointers[1:]):
        choice = np.take_along_axis(pointer, state, -1)
        way.append(choice)
        state = choice if pointer.shape[-1] == k else state % k * k + choice
    taken = np.stack(way, axis=-2)
    words, value = (np.take_along_axis(t, taken, -1)[..., 0] for t in (words, value))
    return words, value, ahead.reshape(*words.shape[:-1], -1)[..., 0] - value.sum(-1, dtype=np.float32)
