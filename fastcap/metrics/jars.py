"""METEOR 1.5 and SPICE by pycocoevalcap's jars, kept from hanging and from reading numbers in the machine's locale.

SPICE runs only where its CoreNLP models lie beside it already: nothing is ever downloaded.
"""

import json
import math
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fastcap.metrics.java import JavaError, find_jar, java_command, kill, last_line, run_java, start, stop

_MODELS = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")
_SEPARATOR = "|||"


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]], timeout: float | None = None) -> float:
    """Score a set of captions. The jar needs about 7 s to start and 2 GB of memory.

    Args:
        candidates: Tokenised captions, one for each image.
        references: Their tokenised references, at least one for each image.
        timeout: Seconds until the jar is killed; by default 120 and a tenth of a second for each caption.

    Returns:
        METEOR of the set in [0, 1].

    Raises:
        JavaError: Java or the jar is missing, it failed, or it took too long.
    """
    jar = find_jar("meteor/meteor-1.5.jar")
    find_jar("meteor/data/paraphrase-en.gz")
    command = java_command(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"])
    seconds = 120 + 0.1 * len(candidates) if timeout is None else timeout
    lines = [_score_line(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)]
    # a file takes the complaints: a pipe that nobody reads would block the jar once full
    with tempfile.TemporaryDirectory(prefix="fastcap-meteor-") as folder, tempfile.TemporaryFile() as complaints:
        process = start(command, folder, stderr=complaints)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            kill(process)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            return _talk(process.stdin, process.stdout, lines)
        except (OSError, ValueError) as error:
            if late.is_set():
                raise JavaError(f"METEOR took more than {seconds:g} s") from error
            stop(process)
            complaints.seek(0)
            raise JavaError(f"METEOR failed: {last_line(complaints.read())} ({error})") from error
        finally:
            timer.cancel()
            stop(process)


def _score_line(candidate: str, references: Sequence[str]) -> str:
    texts = [text.replace(_SEPARATOR, "").replace("  ", " ") for text in (*references, candidate)]
    return f" {_SEPARATOR} ".join(["SCORE", *texts])


def _talk(stdin: IO[bytes], stdout: IO[bytes], lines: Sequence[str]) -> float:
    """Ask for each caption's statistics, then for the set's score by sending all of them back in one line."""
    statistics = [_ask(stdin, stdout, line) for line in lines]
    _ask(stdin, stdout, f" {_SEPARATOR} ".join(["EVAL", *statistics]))
    for _ in range(len(lines) - 1):
        _read(stdout)
    return float(_read(stdout))


def _ask(stdin: IO[bytes], stdout: IO[bytes], line: str) -> str:
    stdin.write(line.encode("utf-8", "replace") + b"\n")
    stdin.flush()
    return _read(stdout)


def _read(stdout: IO[bytes]) -> str:
    answer = stdout.readline().decode("utf-8", "replace").strip()
    if not answer or answer.startswith("Error"):
        raise ValueError(answer or "the jar ended without an answer")
    return answer


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]], timeout: float | None = None) -> float:
    """Score a set of captions. The jar needs up to 8 GB of memory and keeps no cache here.

    Args:
        candidates: Tokenised captions, one for each image.
        references: Their tokenised references, at least one for each image.
        timeout: Seconds until the jar is killed; by default 600 and half a second for each caption.

    Returns:
        SPICE of the set in [0, 1]: the mean F over the images that have one.

    Raises:
        JavaError: Java, the jar or the CoreNLP models are missing, it failed, or it took too long.
    """
    jar = find_jar("spice/spice-1.0.jar")
    for models in _MODELS:
        try:
            find_jar(models)
        except JavaError as error:
            raise JavaError(f"{error}; get_stanford_models() of pycocoevalcap.spice downloads it") from error
    seconds = 600 + 0.5 * len(candidates) if timeout is None else timeout
    with tempfile.TemporaryDirectory(prefix="fastcap-spice-") as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        captions = [
            {"image_id": image, "test": candidate, "refs": list(texts)}
            for image, (candidate, texts) in enumerate(zip(candidates, references, strict=True))
        ]
        source.write_text(json.dumps(captions), encoding="utf-8")
        run_java(["-Xmx8G", "-jar", str(jar), str(source), "-out", str(target), "-silent"], timeout=seconds)
        try:
            results = json.loads(target.read_text(encoding="utf-8"))
            scores = [_number(item["scores"]["All"]["f"]) for item in results]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaError(f"SPICE wrote no scores: {error}") from error
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        raise JavaError("SPICE gave no image a score")
    return sum(known) / len(known)


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
