"""Choose a tokenizer, and tokenise every sentence once however often an epoch brings it back."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

from fastcap.metrics.java import JavaError, find_jar, java_command, warn_once
from fastcap.metrics.ptb import JAR, ptb_tokenize
from fastcap.metrics.simple import simple_tokenize

TokenizerName = Literal["ptb", "simple"]
CACHE_SIZE = 400_000  # sentences; about 100 MB when full, enough for the references of any COCO split

_cache: OrderedDict[tuple[TokenizerName, str], str] = OrderedDict()


def choose_tokenizer(wanted: Literal["ptb", "simple", "auto"]) -> TokenizerName:
    """Decide which tokenizer to use on this machine.

    Args:
        wanted: "ptb" insists on Java, "simple" avoids it, "auto" takes PTB's where it can run, else the simple one
            with a warning.

    Returns:
        "ptb" or "simple".

    Raises:
        ValueError: An unknown name.
        JavaError: "ptb" was asked for and Java or the jar is missing.
    """
    if wanted not in ("ptb", "simple", "auto"):
        raise ValueError(f'tokenizer must be "ptb", "simple" or "auto", got {wanted!r}')
    if wanted == "simple":
        return "simple"
    try:
        java_command([])
        find_jar(JAR)
    except JavaError as error:
        if wanted == "ptb":
            raise
        warn_once(f"caption metrics use the simple tokenizer, scores are near PTB's but not equal: {error}")
        return "simple"
    return "ptb"


def tokenize(sentences: Iterable[str], name: TokenizerName) -> dict[str, str]:
    """Tokenise sentences; those seen before come from a cache, the others go to Java in one call.

    Args:
        sentences: Raw captions, repeats welcome.
        name: The tokenizer.

    Returns:
        Tokenised text (lower-case tokens joined by spaces) by raw sentence.

    Raises:
        JavaError: PTB's tokenizer could not run or failed.
    """
    result: dict[str, str] = {}
    new: list[str] = []
    for sentence in dict.fromkeys(sentences):
        key = (name, sentence)
        if key in _cache:
            _cache.move_to_end(key)
            result[sentence] = _cache[key]
        else:
            new.append(sentence)
    if new:
        done = ptb_tokenize(new) if name == "ptb" else [simple_tokenize(sentence) for sentence in new]
        for sentence, tokens in zip(new, done, strict=True):
            result[sentence] = _cache[name, sentence] = tokens
        while len(_cache) > CACHE_SIZE:
            _cache.popitem(last=False)
    return result


def clear_cache() -> None:
    """Forget all tokenised sentences, for tests and long-lived servers."""
    _cache.clear()
