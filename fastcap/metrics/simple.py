"""PTB-like tokenisation in pure Python, for machines without Java.

It follows the rules of Stanford's PTBTokenizer that captions meet: contractions, brackets, abbreviations, numbers,
hyphens, slashes, runs of punctuation. It is not the same tokenizer: scores made with it are near PTB's, not equal to
them, and must say so (`CaptionMetrics.tokenizer_name`).
"""

import re

# pycocoevalcap's list. Its brackets are in capitals although the jar, run with -lowerCase, writes -lrb-: brackets stay.
PUNCTUATIONS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

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


def strip_punctuation(tokens: list[str]) -> str:
    """Remove the tokens that pycocoevalcap removes after tokenising.

    Args:
        tokens: The tokens of one caption.

    Returns:
        Those that stay, joined by single spaces.
    """
    return " ".join(token for token in tokens if token not in PUNCTUATIONS)


def simple_tokenize(sentence: str) -> str:
    """Tokenise one caption nearly as PTBTokenizer would, without Java.

    Args:
        sentence: A raw caption; white space of any kind counts as a space.

    Returns:
        Lower-case tokens joined by single spaces, punctuation removed; "" for an empty caption.
    """
    text = _REPLACE.sub(lambda match: _REPLACED[match.group()], " ".join(sentence.split()))
    text = _JOINED.sub(lambda match: match.group() + " ", _CONTRACTION.sub(r" \1", _DROPPED.sub(" ", text)))
    tokens = [_BRACKETS.get(token, token.lower()) for token in _TOKEN.findall(text)]
    return strip_punctuation(["..." if set(token) == {"."} and len(token) > 2 else token for token in tokens])
