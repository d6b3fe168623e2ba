"""A checkpoint to an export folder: graphs of every variant, then their comparison with the checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fastcap.build import LoadedCheckpoint, build_datamodule, load_checkpoint
from fastcap.cli import UserError
from fastcap.data.folders import FolderImages
from fastcap.serving.captioner import Captioner
from fastcap.serving.chain import BigramTable
from fastcap.serving.compare_variants import REFERENCE, Photo, compare, preferred
from fastcap.serving.eager import EagerNetwork
from fastcap.serving.exported import ExportedNetwork
from fastcap.serving.folder import BIGRAMS, FORMAT_VERSION, INDEX, SUFFIXES, TOKENIZER, ModelFacts, folder_bytes
from fastcap.serving.graphs import expert_groups, graph_sources, write_onnx
from fastcap.serving.quantize import Feeds, quantize_openvino, record_feeds
from fastcap.serving.quantize_onnx import Quantized, quantize_onnx
from fastcap.serving.readme import readme
from fastcap.serving.runtimes import INSTALL, LazyGraphs
from fastcap.serving.weights import share_weights

RUNTIMES = tuple(SUFFIXES)
# bf16 is OpenVINO's: it computes in it where the processor can, from weights stored in 16 bits.
VARIANTS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16", "openvino-int8")
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "openvino-int8": ("nncf",)}


@dataclass
class ExportOptions:
    """What to export.

    Attributes:
        formats: Runtimes, out of ``RUNTIMES``.
        precisions: Out of ``fp32``, ``bf16`` and ``int8``.
        num_calibration: Training images that int8 ranges are measured on.
        num_compared: Validation images that variants are compared on.
        images: A folder of images to use for both instead of the checkpoint's data.
        num_threads: Threads while comparing; None leaves it to each runtime.
        data_root: Where the checkpoint's data lies now, if elsewhere than in training.
    """

    formats: Sequence[str] = RUNTIMES
    precisions: Sequence[str] = ("fp32", "bf16", "int8")
    num_calibration: int = 128
    num_compared: int = 300
    images: Path | None = None
    num_threads: int | None = None
    data_root: Path | None = None

    @property
    def variants(self) -> list[str]:
        """Names of the variants asked for."""
        return [v for v in VARIANTS if v.split("-")[0] in self.formats and v.split("-")[1] in self.precisions]


def export(ckpt: Path, out: Path, options: ExportOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Export a checkpoint and compare the variants with it.

    The folder appears whole at the end; one that was there before and holds an export is replaced.

    Args:
        ckpt: The checkpoint.
        out: The folder.
        options: What to export.
        say: Told what is being done.

    Returns:
        What ``report.json`` holds.

    Raises:
        UserError: If nothing is asked for, a package is missing, the folder holds something else, or the model is of a
            kind that is not exported.
        CheckpointError: If the checkpoint is unusable.
        DataError: If images are missing.
    """
    _check(out, options)
    elsewhere = {"data.source.root": str(options.data_root)} if options.data_root else {}
    loaded = load_checkpoint(ckpt, elsewhere)
    if loaded.model.decoder.causal:
        kind = type(loaded.model.decoder).__name__
        raise UserError(f"{ckpt}: only non-autoregressive models are exported, its decoder is {kind}")
    data = _Images(loaded, options)
    network = EagerNetwork(loaded, pack=())  # folds batch norms, so that the graphs have none
    facts = _facts(loaded, network)
    two, three = loaded.model.decoder.bigrams, loaded.model.decoder.trigrams
    tables = [two.pairs, two.worth, two.unseen, loaded.model.alignment.phrases]
    tables += [three.triples, three.worth, three.contexts, three.unseen]
    bigrams = BigramTable(*(table.numpy() for table in tables))
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        base = temporary / "onnx-fp32"
        base.mkdir(parents=True)
        for name, source in graph_sources(loaded.model, network.image_size):
            say(f"graph {name}")
            write_onnx(source, base / f"{name}.onnx")
        feeds: Feeds = {}
        if "int8" in options.precisions:
            say(f"ranges of {options.num_calibration} training images")
            graphs = LazyGraphs(base, "onnx", "fp32", options.num_threads)
            fp32 = ExportedNetwork(facts, graphs, loaded.tokenizer, bigrams, {})
            feeds = record_feeds(fp32, data.calibration(), len(facts.groups))
        quantized: dict[str, Any] = {}
        # onnx-fp32 last: the others are made from its graphs, before their weights move out.
        for variant in sorted(options.variants, key=lambda name: name == "onnx-fp32"):
            say(f"variant {variant}")
            made = _write_variant(temporary / variant, variant, base, facts, loaded.tokenizer.to_json(), feeds)
            bigrams.write(temporary / variant / BIGRAMS)
            if made:
                quantized[variant] = {name: graph.summary() for name, graph in made.items()}
        if "onnx-fp32" not in options.variants:
            shutil.rmtree(base)
        report = _compared(temporary, network, data, options, quantized, say)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _check(out: Path, options: ExportOptions) -> None:
    if not options.variants:
        raise UserError(
            f"nothing to export: formats {', '.join(options.formats)} with precisions {', '.join(options.precisions)} "
            f"make none of {', '.join(VARIANTS)}"
        )
    needed = {package for key in ("onnx", *options.formats, *options.variants) for package in NEEDED.get(key, ())}
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise UserError(f"exporting needs {', '.join(missing)}: {INSTALL}")
    if out.exists() and not (out / INDEX).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no export; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)


def _facts(loaded: LoadedCheckpoint, network: EagerNetwork) -> ModelFacts:
    refinement = {key: value for key, value in loaded.config["refinement"].items() if key != "_target_"}
    facts = ModelFacts(
        name=network.info["name"],
        runtime="onnx",
        precision="fp32",
        image_size=network.image_size,
        parameters=network.info["parameters"],
        special=asdict(loaded.tokenizer.special),
        refinement=refinement,
        groups=expert_groups(loaded.model.decoder),
        config=loaded.config,
    )
    try:
        _ = facts.settings
    except ValueError as error:  # a key that refinement without torch does not know
        raise UserError(f"{loaded.path}: {error}") from error
    return facts


def _write_variant(
    folder: Path, variant: str, base: Path, facts: ModelFacts, tokenizer: str, feeds: Feeds
) -> dict[str, Quantized]:
    """Write a variant; returns the layers of graphs that ONNX Runtime's int8 was made of."""
    quantized = {}
    runtime, precision = variant.split("-")
    folder.mkdir(exist_ok=True)
    facts = replace(facts, runtime=runtime, precision=precision)
    for name in facts.graphs:
        source, target = base / f"{name}.onnx", folder / f"{name}{SUFFIXES[runtime]}"
        in_int8 = precision == "int8"
        if in_int8 and runtime == "onnx":
            quantized[name] = quantize_onnx(source, target, feeds[name])
        elif in_int8:
            quantize_openvino(source, target, feeds[name])
        elif runtime == "onnx" and source != target:
            shutil.copy(source, target)
        elif runtime == "openvino":
            import openvino

            openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=precision == "bf16")
    share_weights(folder, facts.graphs, runtime)
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    facts.write(folder)
    return quantized


class _Images:
    """Where calibration and comparison take their images from."""

    def __init__(self, loaded: LoadedCheckpoint, options: ExportOptions) -> None:
        self.size, self.options = loaded.image_size, options
        self.metric_options: dict[str, Any] = loaded.config["metrics"]
        if options.images is not None:
            folder = FolderImages(options.images, 0.5)
            self.train, self.val = folder.split("train"), folder.split("val")
        else:
            cfg = OmegaConf.create(loaded.config)
            assert isinstance(cfg, DictConfig)
            datamodule = build_datamodule(cfg, loaded.tokenizer)
            self.train, self.val = datamodule.records("train"), datamodule.records("val")  # type: ignore[assignment]

    def calibration(self) -> list[np.ndarray]:
        """Training images, spread over the whole split."""
        chosen = _spread(len(self.train.image_ids), self.options.num_calibration)
        return [self.train.load_image(i, self.size) for i in chosen]

    def compared(self) -> list[Photo]:
        """Validation images, spread over the whole split."""
        chosen = _spread(len(self.val.image_ids), self.options.num_compared)
        val = self.val
        return [Photo(int(val.image_ids[i]), val.load_image(i, self.size), val.captions[i]) for i in chosen]


def _spread(total: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def _compared(
    folder: Path,
    network: EagerNetwork,
    data: _Images,
    options: ExportOptions,
    quantized: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    captioners = {REFERENCE: Captioner(network)}
    for variant in options.variants:
        captioners[variant] = Captioner.load(folder / variant, num_threads=options.num_threads)
    photos = data.compared()
    say(f"comparing on {len(photos)} validation images")

    def progress(done: int) -> None:
        if done % 100 == 0:
            say(f"  {done} images")

    rows = compare(captioners, photos, data.metric_options, progress)
    report = {
        "default": preferred(rows),
        "calibration_images": options.num_calibration if "int8" in options.precisions else 0,
        "threads": options.num_threads,
        "quantized": quantized,
        "rows": rows,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    sizes = {variant: folder_bytes(folder / variant) for variant in options.variants}
    index = {"format_version": FORMAT_VERSION, "default": report["default"], "variants": sizes}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    (folder / "README.md").write_text(readme(report), encoding="utf-8")
    return report
