"""Choose a tokenizer (PTB's by Java, or one near it in pure Python), and tokenise every sentence once.

The simple one follows the rules of Stanford's PTBTokenizer that captions meet: contractions, brackets, abbreviations,
numbers, hyphens, slashes, runs of punctuation. It is not the same: scores made with it are near PTB's, not equal to
them, and must say so (`CaptionMetrics.tokenizer_name`).
"""

import re
from collections.abc import Iterable

from fastcap.metrics.java import PTB_JAR, JavaError, find_jar, find_java, ptb_tokenize, strip_punctuation, warn_once

CACHE_SIZE = 400_000  # sentences; about 100 MB when full, enough for the references of any COCO split

_cache: dict[tuple[str, str], str] = {}  # however often an epoch brings a sentence back

_REPLACED = {
    "\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": " -- ", "\u2014": " -- ", "\u2026": "...",
    "\u00a3": "#", "\u20ac": "$", "\u00bd": " 1/2 ", "\u00bc": " 1/4 ", "\u00be": " 3/4 ", "\u200b": " ", "\ufeff": " ",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'",
}  # fmt: skip
_REPLACE = re.compile("|".join(map(re.escape, _REPLACED)))
_DROPPED = re.compile("[\x00-\x1f\x7f\ud800-\udfff\U00010000-\U0010ffff\u200d\ufe0f]")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}
_CONTRACTION = re.compile(r"(?<=[^\W_])(n't|'(?:s|m|d|re|ve|ll))(?![^\W_])", re.IGNORECASE)
_JOINED = re.compile(
    r"\b(can(?=not\b)|gon(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)|wan(?=na\b))|(?<!\w)('t)(?=is|was)", re.IGNORECASE
)
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|corp|co|ltd|bros|ave|blvd|rd|mt|ft|prof|rev|gen|col|capt|lt|sgt|gov|sen|rep|esq"
    "|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|fri|ph\\.d|calif"
)
_TOKEN = re.compile(
    rf"""
    (?:https?|ftp)://\S+ | www\.\S+           # addresses
  | [\w.%+-]+@[^\W_][\w.-]*[^\W_] | @[a-z_]\w*
  | </?[a-z][^<>]*>                           # tags, such as <unk>
  | (?:{_ABBREVIATIONS})\.(?![^\W_])
  | (?:[a-z]\.){{2,}} | [a-z]\.(?=\s+[a-z])   # u.s., and an initial inside the caption
  | [a-z]\+\+ | (?-i:[A-Z]+(?:&[A-Z]+)+)      # c++, R&B
  | 'n'(?!\w) | '(?:em|n|[0-9]0s|s|m|d|re|ve|ll|t)(?![^\W_]) | n't(?![^\W_]) | o'clock | ol' | y'
  | [-+]?\d+(?:[.,:]\d+)+(?!\w) | -\d+(?![\w/-]) | \.\d+(?!\w)
  | [^\W_]+(?:-[^\W\d_]+){{0,2}}(?:/[^\W_]+(?:-[^\W\d_]+){{0,2}}){{1,2}}
  | [^\W_]+(?:(?:[-_]|[.!?](?=[^\W\d_])|(?<=\d)[.,](?=\d))[^\W_]+)*
  | \.{{3,}} | [!?]{{2,}} | --+ | `+ | \*+ | ''
  | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def simple_tokenize(sentence: str) -> str:
    """Tokenise one raw caption nearly as PTBTokenizer would, without Java.

    Returns:
        Lower-case tokens joined by single spaces, punctuation removed; "" for an empty caption.
    """
    text = _REPLACE.sub(lambda match: _REPLACED[match.group()], " ".join(sentence.split()))
    text = _JOINED.sub(lambda match: match.group() + " ", _CONTRACTION.sub(r" \1", _DROPPED.sub(" ", text)))
    tokens = [_BRACKETS.get(token, token.lower()) for token in _TOKEN.findall(text)]
    return strip_punctuation(["..." if set(token) == {"."} and len(token) > 2 else token for token in tokens])


def choose_tokenizer(wanted: str) -> str:
    """Decide which tokenizer to use on this machine, "ptb" or "simple".

    Args:
        wanted: "ptb" insists on Java and raises ``JavaError`` without it, "simple" avoids it, "auto" takes PTB's where
            it can run, else the simple one with a warning; others raise ``ValueError``.
    """
    if wanted not in ("ptb", "simple", "auto"):
        raise ValueError(f'tokenizer must be "ptb", "simple" or "auto", got {wanted!r}')
    if wanted == "simple":
        return "simple"
    try:
        find_java()
        find_jar(PTB_JAR)
    except JavaError as error:
        if wanted == "ptb":
            raise
        warn_once(f"caption metrics use the simple tokenizer, scores are near PTB's but not equal: {error}")
        return "simple"
    return "ptb"


def tokenize(sentences: Iterable[str], name: str) -> dict[str, str]:
    """Tokenise sentences; those seen before come from a cache, the others go to Java in one call.

    Args:
        sentences: Raw captions, repeats welcome.
        name: "ptb", which raises ``JavaError`` where it cannot run, or "simple".

    Returns:
        Tokenised text (lower-case tokens joined by spaces) by raw sentence.
    """
    wanted = dict.fromkeys(sentences)
    if len(_cache) > CACHE_SIZE:
        _cache.clear()
    new = [sentence for sentence in wanted if (name, sentence) not in _cache]
    if new:
        done = ptb_tokenize(new) if name == "ptb" else map(simple_tokenize, new)
        _cache.update(((name, sentence), tokens) for sentence, tokens in zip(new, done, strict=True))
    return {sentence: _cache[name, sentence] for sentence in wanted}
