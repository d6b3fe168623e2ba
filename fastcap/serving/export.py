"""A checkpoint to ONNX files, one a precision: pixels in, captions out, traced from ``FastCap.decode`` itself."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.export import Dim

from fastcap.build import LoadedCheckpoint, build_datamodule, load_checkpoint
from fastcap.cli import UserError
from fastcap.data.image_files import FolderImages
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.model import FastCap
from fastcap.pretrained import EXPORT_INDEX
from fastcap.serving.captioner import Captioner
from fastcap.serving.compare import REFERENCE, Photo, compare, preferred
from fastcap.serving.eager import EagerNetwork
from fastcap.serving.onnx_edits import drop_outputs
from fastcap.serving.onnx_model import CAPTION_OUTPUTS, FORMAT_VERSION, INPUT, PREFIX, STEP_OUTPUTS, open_onnx
from fastcap.serving.quantize_onnx import quantize_onnx
from fastcap.types import Encoded, MaskedDecoder

PRECISIONS = ("fp32", "int8")
LICENCE = "Apache-2.0; weights: see the model card"
PROBES = ("length_logits", "concept_logits", "word_logits")  # outputs that quantisation measures its errors on
PREPROCESSING = "RGB, uint8; EXIF rotation applied, transparency on white; squashed to a square of image_size (bicubic)"


@dataclass
class ExportOptions:
    """What to export.

    Attributes:
        precisions: Out of ``PRECISIONS``.
        num_steps: Refinement steps of the graph; None takes the checkpoint's.
        length_beam: Length candidates of the graph; None takes the checkpoint's.
        num_calibration: Training images that int8 ranges are measured on.
        num_compared: Validation images that the files are compared with the checkpoint on.
        images: A folder of images to use for both instead of the checkpoint's data.
        num_threads: Threads while comparing; None leaves it to each runtime.
        data_root: Where the checkpoint's data lies now, if elsewhere than in training.
    """

    precisions: Sequence[str] = PRECISIONS
    num_steps: int | None = None
    length_beam: int | None = None
    num_calibration: int = 128
    num_compared: int = 300
    images: Path | None = None
    num_threads: int | None = None
    data_root: Path | None = None


def export(ckpt: Path, out: Path, options: ExportOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Export a checkpoint and compare the files with it.

    Everything is made in a folder inside the target's, so that a link or a mounted volume works, and moves to its place
    when all is done; what an older export left there and this one does not replace goes last.

    Args:
        ckpt: The checkpoint.
        out: The folder, for one file a precision and ``export.json``; or the file, for one precision.
        options: What to export.
        say: Told what is being done.

    Returns:
        What ``export.json`` holds.

    Raises:
        UserError: If the target cannot be written, or the model is of a kind that is not
            exported.
        CheckpointError: If the checkpoint is unusable.
        DataError: If images are missing.
    """
    targets = _targets(out, options)
    elsewhere = {"data.source.root": str(options.data_root)} if options.data_root else {}
    with _workplace(next(iter(targets.values())).parent, out) as scratch:
        loaded = load_checkpoint(ckpt, elsewhere)
        if loaded.model.decoder.causal:
            kind = type(loaded.model.decoder).__name__
            raise UserError(f"{ckpt}: only non-autoregressive models are exported, its decoder is {kind}")
        data = _Images(loaded, options)
        network = EagerNetwork(loaded, options.length_beam)
        say("tracing the model")
        files = {precision: scratch / target.name for precision, target in targets.items()}
        source = files.get("fp32", scratch / "source.onnx")
        graph = CaptioningGraph(network.model, options.num_steps, options.length_beam)
        write_onnx(graph, network.image_size, source)
        quantized: dict[str, Any] = {}
        if "int8" in files:
            say(f"int8: ranges of {options.num_calibration} training images")
            feeds = [{INPUT: image[None]} for image in data.calibration()]
            quantized = quantize_onnx(source, files["int8"], feeds, PROBES, say=say).summary()
        for precision, file in files.items():
            finish(file, loaded, network, graph, precision)
        if "int8" in files:
            optimize_ahead(files["int8"])
        report = _compared(files, network, graph, data, options, say)
        report |= {"default": targets[report["default"]].name, "quantized": quantized}
        _put_in_place(files, targets, out, report)
    return report


class CaptioningGraph(nn.Module):
    """The whole captioner as one function of the pixels; what an export traces.

    Args:
        model: In evaluation mode.
        num_steps: Refinement steps; None takes the model's.
        length_beam: Length candidates; None takes the model's.
    """

    def __init__(self, model: FastCap, num_steps: int | None = None, length_beam: int | None = None) -> None:
        super().__init__()
        self.model = model
        refinement: Any = model.refinement
        self.num_steps = int(num_steps or refinement.num_steps)
        self.length_beam = int(length_beam or refinement.length_beam)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Caption images.

        Args:
            pixels: uint8, RGB. (B, S, S, 3)

        Returns:
            Token ids (B, L), lengths (B,) and confidences (B,) of the captions; each step's draft, its confidences and
            what was masked again (B, T, L), the drafts' lengths (B,) and the expert weights (B, E). Then the probes:
            scores of lengths (B, L), of concepts (B, C) and of the words of a draft of masks (B, L, V).
        """
        encoded = self.model.encode(pixels.permute(0, 3, 1, 2))
        result = self.model.decode(encoded, self.num_steps, self.length_beam, record_steps=True)
        drafts, sure, remasked = (
            torch.stack([getattr(step, name) for step in result.steps], dim=1)
            for name in ("tokens", "confidence", "remasked")
        )
        experts = result.expert_weights
        assert experts is not None
        caption = result.tokens.int(), result.lengths.int(), result.scores.exp()
        making = drafts.int(), sure, remasked, result.drafted_lengths.int(), experts.float()
        return (*caption, *making, *self._probes(encoded))

    def _probes(self, encoded: Encoded) -> tuple[Tensor, ...]:
        """Quantities that every layer has a part in: a caption is a choice, which tells little of rounding errors."""
        decoder, memory = cast(MaskedDecoder, self.model.decoder), encoded.memory
        masks = torch.full((memory.shape[0], decoder.max_length), self.model.refinement.special.mask)
        words = decoder.denoise(masks, torch.zeros_like(masks, dtype=torch.bool), decoder.prepare(memory))
        concepts = self.model.alignment.concepts.head(encoded.concept_features)
        return self.model.length(memory), concepts, words


def write_onnx(graph: CaptioningGraph, image_size: int, path: Path) -> None:
    """Trace the captioner and write it as one ONNX file, for any number of images; with the probes."""
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxscript.optimizer import optimize_ir

    # Two example images: what is one in an example would be fixed.
    pixels = torch.randint(0, 256, (2, image_size, image_size, 3), dtype=torch.uint8)
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (pixels,),
            dynamo=True,
            verbose=False,
            optimize=False,  # by default, which takes minutes
            input_names=[INPUT],
            output_names=[*CAPTION_OUTPUTS, *STEP_OUTPUTS, *PROBES],
            dynamic_shapes=({0: Dim("batch")},),
        )
        assert program is not None
        optimize_ir(program.model, num_iterations=1, onnx_shape_inference=False)
        program.save(path, external_data=False)
    # ONNX Runtime folds constants, and weights that steps share into one: what it writes at this level runs on any CPU.
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 4
    InferenceSession(path, options, providers=["CPUExecutionProvider"])
    os.replace(options.optimized_model_filepath, path)


def finish(path: Path, loaded: LoadedCheckpoint, network: EagerNetwork, graph: CaptioningGraph, precision: str) -> None:
    """Take the probes out of a file, and write all that is to be known beside the graph into its metadata."""
    import onnx

    point = {"num_steps": graph.num_steps, "length_beam": graph.length_beam}
    facts = {
        "format_version": FORMAT_VERSION,
        "name": network.info["name"],
        "parameters": network.info["parameters"],
        "precision": precision,
        "image_size": network.image_size,
        "preprocessing": PREPROCESSING,
        "operating_point": json.dumps({**point, "max_length": loaded.model.decoder.max_length}),
        "vocabulary": json.dumps(vocabulary(loaded.tokenizer), ensure_ascii=False),
        "licence": LICENCE,
    }
    model = onnx.load(path)
    drop_outputs(model, PROBES)
    add_words(model, vocabulary(loaded.tokenizer)["pieces"])
    onnx.helper.set_model_props(model, {PREFIX + name: str(value) for name, value in facts.items()})
    onnx.save(model, path)


def optimize_ahead(path: Path) -> None:
    """Store a graph as ONNX Runtime's optimiser leaves it on any CPU: opening it then takes a third of the time.

    Its fused operators are ONNX Runtime's own, so this is for int8 alone; the fp32 file stays plain ONNX.
    """
    optimized = path.with_suffix(".optimized")
    open_onnx(path, optimized=optimized)
    optimized.replace(path)


def add_words(model: Any, pieces: Sequence[str]) -> None:
    """Add an output of the caption's words, (B, L), for languages whose ONNX Runtime shows no metadata."""
    import onnx

    content: Any = [piece.encode() for piece in pieces]
    words = onnx.helper.make_tensor("vocabulary", onnx.TensorProto.STRING, [len(pieces)], content)
    model.graph.initializer.append(words)
    model.graph.node.append(onnx.helper.make_node("Gather", ["vocabulary", "tokens"], ["words"], "words"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.STRING, ["batch", "length"]))


def vocabulary(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    """Return what ``Vocabulary`` takes: what each token id stands for, without the tokenizers package."""
    model = json.loads(tokenizer.to_json())["model"]
    pieces = [""] * tokenizer.vocab_size
    for piece, index in model["vocab"].items():
        pieces[index] = "" if index in tokenizer.special.ids else piece
    if model["type"] != "BPE":
        return {"kind": "words", "pieces": pieces}
    # GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {byte: chr(byte) for byte in printable} | {256 + n: chr(byte) for n, byte in enumerate(others)}
    return {"kind": "bytes", "pieces": [piece.translate(byte_of) for piece in pieces]}


def _targets(out: Path, options: ExportOptions) -> dict[str, Path]:
    """Name the file of each precision, after checking what can be checked before the work."""
    if out.suffix == ".onnx" and not out.is_dir():
        if len(options.precisions) != 1:
            raise UserError(f"{out}: a file holds one precision: add --precisions fp32 or int8, or name a folder")
        return {options.precisions[0]: out}
    targets = {precision: out / f"fastcap-{precision}.onnx" for precision in options.precisions}
    own = _older(out)
    for target in targets.values():
        if target.exists() and target.name not in own:
            raise UserError(f"{target}: exists and is of no export in this folder; move it or name another folder")
    return targets


def _older(folder: Path) -> list[str]:
    """Files of an export that the folder holds already."""
    try:
        return [
            Path(row["file"]).name for row in json.loads((folder / EXPORT_INDEX).read_text())["rows"] if row["file"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@contextlib.contextmanager
def _workplace(folder: Path, out: Path) -> Iterator[Path]:
    """Make a folder to work in inside the target's, and take it away in the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_in_place(files: dict[str, Path], targets: dict[str, Path], out: Path, report: dict[str, Any]) -> None:
    folder = next(iter(targets.values())).parent
    try:
        stale = set(_older(folder)) - {target.name for target in targets.values()} if out == folder else set()
        for precision, file in files.items():
            os.replace(file, targets[precision])
        if out == folder:
            index = next(iter(files.values())).with_name(EXPORT_INDEX)
            index.write_text(json.dumps(report, indent=1), encoding="utf-8")
            os.replace(index, out / EXPORT_INDEX)
            for name in stale:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


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
    files: dict[str, Path],
    network: EagerNetwork,
    graph: CaptioningGraph,
    data: _Images,
    options: ExportOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    reference = Captioner(network)
    reference.num_steps = graph.num_steps
    captioners = {REFERENCE: reference}
    for precision, file in files.items():
        captioners[precision] = Captioner.load(file, num_threads=options.num_threads)
    photos = data.compared()
    say(f"comparing on {len(photos)} validation images")

    def progress(done: int) -> None:
        if done % 100 == 0:
            say(f"  {done} images")

    rows = compare(captioners, photos, data.metric_options, progress)
    for row in rows:
        row["file"] = files[row["variant"]].name if row["variant"] in files else None
    return {
        "format_version": FORMAT_VERSION,
        "default": preferred(rows),
        "calibration_images": options.num_calibration if "int8" in files else 0,
        "threads": options.num_threads,
        "num_steps": graph.num_steps,
        "length_beam": graph.length_beam,
        "rows": rows,
    }


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks to itself: they are about how it works, and errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
