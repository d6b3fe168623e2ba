"""METEOR: right where it runs, left out where it does not, never hanging."""

import time

import pytest

from fastcap.metrics import CaptionMetrics, caption, java
from fastcap.metrics.java import JavaError, meteor

CANDIDATES = ["a dog is running", "", "naïve café ||| x"]
REFERENCES = [["a dog runs", "a brown dog is running"], ["a cat", ""], ["naïve café", "x"]]


METEOR = 0.34158325270601464  # pycocoevalcap 1.2's own


@pytest.mark.slow
def test_meteor_of_committed_captions(java, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de")  # pinned: a decimal comma must not matter
    assert meteor(CANDIDATES, REFERENCES) == pytest.approx(METEOR, abs=1e-9)


@pytest.mark.parametrize("body", ["sleep 60", "exit 1", "echo nonsense"])
def test_meteor_never_hangs(body, tmp_path, monkeypatch):
    script = tmp_path / "java"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(java, "find_java", lambda: str(script))
    start = time.monotonic()
    with pytest.raises(JavaError):
        meteor(CANDIDATES, REFERENCES, timeout=0.5)
    assert time.monotonic() - start < 10


def test_a_failing_score_leaves_the_others(monkeypatch, caplog, nasty):
    def fail(*_):
        raise JavaError("the jar is gone")

    monkeypatch.setattr(caption, "meteor", fail)
    metrics = CaptionMetrics(names=("bleu", "rouge_l", "cider", "meteor"), tokenizer="simple")
    for _ in range(2):
        assert set(metrics.score(*nasty).metrics) == {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    lines = [record.message for record in caplog.records if record.name == "fastcap.metrics"]
    assert len(lines) == 1 and "the jar is gone" in lines[0]
