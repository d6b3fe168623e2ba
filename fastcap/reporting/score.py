"""Score anybody's captions: `fastcap score RESULTS.json REFERENCES.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastcap.cli import UserError, one_clear_error, print_table

METRICS = ("bleu", "rouge_l", "cider", "meteor")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap score", description="Score a COCO result file against COCO caption annotations."
    )
    parser.add_argument("results", type=Path, help="captions: a JSON list of {image_id, caption}")
    parser.add_argument("references", type=Path, help="COCO caption annotations: JSON with images and annotations")
    parser.add_argument(
        "--metrics",
        default="bleu,rouge_l,cider",
        help=f"comma-separated, out of {', '.join(METRICS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        choices=("auto", "ptb", "simple"),
        default="auto",
        help="ptb insists on Java, simple avoids it (default: %(default)s)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="score the captioned images where some are not")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the scores as JSON")
    parser.add_argument("--per-image", type=Path, metavar="OUT.csv", help="write every image's scores")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> list[str]:
    """Return the metrics asked for; refuses, by a ``UserError``, what would only fail after the scoring."""
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise UserError(f"--metrics {options.metrics}: choose from {', '.join(METRICS)}")
    for name in ("json", "per_image"):
        path = getattr(options, name)
        if path and (path.is_dir() or not path.parent.is_dir()):
            problem = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
            raise UserError(f"--{name.replace('_', '-')} {path}: {problem}")
    return names


def score(options: argparse.Namespace) -> dict[str, float]:
    """Score a result file and write what was asked for.

    Returns:
        Metrics by name, times 100.
    """
    names = check(options)
    from fastcap.data.coco import pair_results
    from fastcap.metrics import CaptionMetrics

    pairs = pair_results(options.results, options.references, options.allow_missing)
    scorer = CaptionMetrics(names, options.tokenizer)
    ids, captions, references, _ = zip(*pairs, strict=True)
    metrics, scores = scorer.score(ids, captions, references)
    if not metrics:
        raise UserError(f"--metrics {options.metrics}: none of these can be had on this machine")
    print_table(f"{options.results}: {len(pairs)} images, {scorer.tokenizer_name} tokenizer", metrics)
    if options.json:
        content = {
            "results": str(options.results),
            "references": str(options.references),
            "images": len(pairs),
            "tokenizer": scorer.tokenizer_name,
            "metrics": metrics,
        }
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if options.per_image:
        from fastcap.reporting.evaluation import ScoredCaption, write_scores

        scored = [ScoredCaption(p.image_id, p.caption, p.references, scores[p.image_id], p.file_name) for p in pairs]
        write_scores(scored, options.per_image)
    return metrics


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    score(parse_arguments(arguments))


if __name__ == "__main__":
    main()
