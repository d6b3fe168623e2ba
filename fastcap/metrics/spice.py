"""SPICE by pycocoevalcap's jar, only where its CoreNLP models lie beside it already: nothing is ever downloaded."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastcap.metrics.java import JavaError, find_jar, run_java

_MODELS = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")


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
