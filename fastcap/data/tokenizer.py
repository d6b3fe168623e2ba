"""Captions to token ids and back, by a vocabulary of words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import snowballstemmer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from fastcap.data.errors import DataError
from fastcap.types import SpecialTokens

# The library warns at every fork of a DataLoader worker unless told; workers here never tokenise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

SPECIAL_TOKENS = ("[PAD]", "[MASK]", "[UNK]", "[BOS]", "[EOS]")

_LETTER = r"[\p{L}\p{M}\p{N}]"
_WORD = rf"{_LETTER}+(?:['\-]{_LETTER}+)*"  # t-shirt, man's, 3
_CLITIC_GAP = rf"\s+(?=(?:n't|'(?:s|re|ve|ll|d|m))(?!{_LETTER}))"  # "man 's" as Penn Treebank writes it


class CaptionTokenizer:
    """A trained vocabulary whose first ids are the special tokens; it travels as one JSON string.

    Attributes:
        special: Ids of the special tokens, 0 to 4.
    """

    special = SpecialTokens(pad=0, mask=1, unk=2, bos=3, eos=4)

    def __init__(self, backend: Tokenizer) -> None:
        """Wrap a tokenizer of the ``tokenizers`` library, whose ids 0 to 4 must be those; ``DataError`` otherwise."""
        found = tuple(backend.id_to_token(index) for index in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise DataError(f"tokenizer: ids 0 to 4 must be {', '.join(SPECIAL_TOKENS)}, found {found}")
        backend.encode_special_tokens = True  # "[MASK]" inside a caption is ordinary text
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the content ids of a caption: neither BOS nor EOS; [UNK] for a word outside a word vocabulary."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many captions at once, in parallel."""
        return [item.ids for item in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_nested(self, captions: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Encode the captions of many images, one list an image."""
        flat = iter(self.encode_batch([text for texts in captions for text in texts]))
        return [[next(flat) for _ in texts] for texts in captions]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the caption that content ids spell; special ids are skipped."""
        special = self.special.ids
        return self._backend.decode([int(index) for index in ids if index not in special]).strip(" ")

    def concepts(self) -> list[int]:
        """Number the concept behind each id from zero: words of one stem share it ("ring", "rings").

        Returns:
            Concepts, -1 for special tokens. (V,)
        """
        stem = snowballstemmer.stemmer("english").stemWord
        numbers: dict[str, int] = {}
        concepts = []
        for index in range(self.vocab_size):
            if index in self.special.ids:
                concepts.append(-1)
            else:
                concepts.append(numbers.setdefault(stem(self.decode([index]).strip()), len(numbers)))
        return concepts

    def to_json(self) -> str:
        """Return everything there is to know of the tokenizer as one JSON string; equal ones are the same tokenizer."""
        return self._backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> CaptionTokenizer:
        """Rebuild a tokenizer from what ``to_json`` returned; raises ``DataError`` when it is anything else."""
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"tokenizer: not a tokenizer's JSON ({error})") from error
        return cls(backend)

    def __getstate__(self) -> str:
        """Pickle as the JSON string."""
        return self.to_json()

    def __setstate__(self, state: str) -> None:
        """Rebuild from the JSON string."""
        self._backend = self.from_json(state)._backend


def train_word_tokenizer(captions: Iterable[str], min_frequency: int = 5) -> CaptionTokenizer:
    """Collect a vocabulary of lower-case words; punctuation is dropped, rare words become [UNK].

    Args:
        captions: Training captions, in whatever order.
        min_frequency: Leave out words seen less often; no word left is a ``DataError``.
    """
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("\u2019", "'"),
            normalizers.Replace(Regex(_CLITIC_GAP), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31,  # no limit
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    texts = list(captions)
    backend.train_from_iterator(texts, trainer)
    tokenizer = CaptionTokenizer(backend)
    if tokenizer.vocab_size == len(SPECIAL_TOKENS) or not any(map(str.strip, texts)):
        raise DataError(f"tokenizer: no word seen {min_frequency} times among {len(texts)} training captions")
    return tokenizer
