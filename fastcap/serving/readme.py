"""The README of an export folder: what is in it, how it is used, how it compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("variant", "MB", "captions equal", "CIDEr", "CIDEr lost", "encode ms", "decode ms")


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Lay the comparison out as text, a tuple a row, in the order of ``COLUMNS``."""
    return [
        (
            row["variant"],
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['equal_captions']:.1%}",
            "-" if row["cider"] is None else f"{row['cider']:.2f}",
            "-" if row["cider_loss_percent"] is None else f"{row['cider_loss_percent']:.2f} %",
            f"{row['encode_ms']:.2f}",
            f"{row['decode_ms']:.2f}",
        )
        for row in rows
    ]


def readme(report: dict[str, Any]) -> str:
    """Write the README of an export."""
    count = report["calibration_images"]
    calibrated = f" int8 ranges from {count} training images;" if count else ""
    lines = [
        "# An exported FastCap captioner",
        "",
        "```python",
        "from fastcap.serving.captioner import Captioner",
        "",
        'captioner = Captioner.load("THIS FOLDER")        # or one variant: "THIS FOLDER/onnx-int8"',
        'print(captioner.caption("photo.jpg").text)',
        "```",
        "",
        f"`fastcap caption --model THIS_FOLDER photo.jpg` does the same. `{report['default']}` is taken unless a",
        "variant is named: the fastest here that lost at most 1 % of the checkpoint's CIDEr (or, without captions by",
        "people, kept 99 % of its captions). Each variant's folder is a model by itself and may be copied alone.",
        "",
        f"Compared with the checkpoint on {report['rows'][0]['images']} validation images, one at a time;{calibrated}",
        "milliseconds are medians of this machine while it exported, to be measured again where they matter.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row) + " |" for row in table(report["rows"])),
        "",
        *_kept(report["quantized"]),
        "Images are squashed to a square, RGB, uint8; standardising is part of the encoder graph.",
        "`prepare_G` and `step_G` belong to expert group G; `step_G` is run once a refinement step.",
        "",
    ]
    return "\n".join(lines)


def _kept(quantized: dict[str, Any]) -> list[str]:
    """Say what int8 left in fp32."""
    lines = []
    for variant, graphs in quantized.items():
        lines += [
            f"Layers that `{variant}` keeps in fp32; in brackets the signal to noise of the graph's outputs, in dB on",
            "training images, if that layer alone were quantised:",
            "",
        ]
        for graph, facts in graphs.items():
            kept = ", ".join(f"{layer} ({level})" for layer, level in facts["kept_in_fp32"].items())
            lines.append(f"- `{graph}`, {len(facts['kept_in_fp32'])} of {facts['layers']}: {kept or 'none'}")
        lines.append("")
    return lines
