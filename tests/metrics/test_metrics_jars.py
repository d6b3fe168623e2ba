"""METEOR and SPICE: right where they run, left out where they do not, never hanging."""

import time

import pytest

from fastcap.metrics import CaptionMetrics, caption, java
from fastcap.metrics.jars import meteor, spice
from fastcap.metrics.java import JavaError, find_jar

CANDIDATES = ["a dog is running", "", "naïve café ||| x"]
REFERENCES = [["a dog runs", "a brown dog is running"], ["a cat", ""], ["naïve café", "x"]]


METEOR = 0.34158325270601464  # pycocoevalcap 1.2's own


def test_meteor_of_committed_captions(java, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de")  # pinned: a decimal comma must not matter
    assert meteor(CANDIDATES, REFERENCES) == pytest.approx(METEOR, abs=1e-9)


@pytest.mark.parametrize("body", ["sleep 60", "exit 1", "echo Error: bad; sleep 60", "yes >&2", "echo nonsense"])
def test_meteor_never_hangs(body, tmp_path, monkeypatch):
    script = tmp_path / "java"
    script.write_text(f"#!/bin/sh\nexec 2>&1\n{body}\n" if "yes" not in body else f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(java, "find_java", lambda: str(script))
    start = time.monotonic()
    with pytest.raises(JavaError):
        meteor(CANDIDATES, REFERENCES, timeout=0.5)
    assert time.monotonic() - start < 10


def test_spice_names_the_missing_models():
    try:
        find_jar("spice/lib/stanford-corenlp-3.6.0-models.jar")
    except JavaError:
        with pytest.raises(JavaError, match=r"stanford-corenlp-3\.6\.0"):
            spice(CANDIDATES, REFERENCES)
    else:
        pytest.skip("SPICE's models are here")


def test_failing_scores_leave_the_others(monkeypatch, caplog, nasty):
    def fail(*_):
        raise JavaError("the jar is gone")

    monkeypatch.setattr(caption, "_JARS", {"meteor": fail, "spice": fail})
    metric = CaptionMetrics(names=("bleu", "rouge_l", "cider", "meteor", "spice"), tokenizer="simple")
    for _ in range(2):
        metric.update(*nasty)
        result = metric.compute()
        metric.reset()
    assert set(result) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    lines = [record.message for record in caplog.records if record.name == "fastcap.metrics"]
    assert len(lines) == 2 and all("the jar is gone" in line for line in lines)
