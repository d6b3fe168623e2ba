"""A checkpoint to ONNX files, one a precision: pixels in, captions out, traced from ``FastCap.decode`` itself."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from fastcap.serving.captioner import Captioner, EagerNetwork
from fastcap.serving.compare import REFERENCE, Photo, compare, preferred
from fastcap.serving.onnx_edits import drop_outputs, fuse_biases, look_up
from fastcap.serving.onnx_model import CAPTION_OUTPUTS, FORMAT_VERSION, INPUT, PREFIX, STEP_OUTPUTS, open_onnx
from fastcap.serving.quantize_onnx import quantize_onnx
from fastcap.training.resume import FolderInUseError, only_writer
from fastcap.types import CaptionRecords, MaskedDecoder
from fastcap.utils.files import atomic_write, naming, write_json

LICENCE = "Apache-2.0; weights: see the model card"
PROBES = ("length_logits", "concept_logits", "word_logits")  # outputs that quantisation measures its errors on
PREPROCESSING = "RGB, uint8; EXIF rotation applied, transparency on white; squashed to image_size squared (bilinear)"


def export(ckpt: Path, out: Path, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Export a checkpoint and compare the files with it.

    Everything is made in a folder inside the target's, so that a link or a mounted volume works, and moves to its place
    when all is done; what an older export left there and this one does not replace goes last.

    Args:
        ckpt: The checkpoint.
        out: The folder, for one file a precision and ``export.json``; or the file, for one precision.
        options: Of ``fastcap export``.
        say: Told what is being done.

    Returns:
        What ``export.json`` holds.

    Raises:
        UserError: If the target is not the export's to replace, or the model is of a kind that is not exported.
        OSError: If the target cannot be written.
        CheckpointError: If the checkpoint is unusable.
        DataError: If images are missing.
    """
    targets = _targets(out, options.precisions)
    folder = next(iter(targets.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".export-*"):  # by exports that were killed
        with contextlib.suppress(FolderInUseError), only_writer(left):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as new, naming(folder), only_writer(Path(new)):
        loaded = load_checkpoint(ckpt, {"data.source.root": str(options.data_root)} if options.data_root else {})
        if loaded.model.decoder.causal:
            kind = type(loaded.model.decoder).__name__
            raise UserError(f"{ckpt}: only non-autoregressive models are exported, its decoder is {kind}")
        train, val = _records(loaded, options.images)
        network = EagerNetwork(loaded, options.length_beam)
        # Images come first: one that cannot be read ends the command before minutes of work.
        chosen = _spread(train, options.calibration if "int8" in options.precisions else 0)
        feeds = [{INPUT: train.load_image(i, network.image_size)[None]} for i in chosen]
        photos = [
            Photo(int(val.image_ids[i]), val.load_image(i, network.image_size), val.captions[i])
            for i in _spread(val, options.compare)
        ]
        say("tracing the model")
        files = {precision: Path(new, target.name) for precision, target in targets.items()}
        source, int8 = Path(new, "source.onnx"), Path(new, "int8.onnx")
        graph = CaptioningGraph(network.model, options.num_steps, options.length_beam)
        write_onnx(graph, network.image_size, source)
        words, quantized = vocabulary(loaded.tokenizer), {}
        facts = {
            "format_version": FORMAT_VERSION,
            "name": network.info["name"],
            "parameters": network.info["parameters"],
            "image_size": network.image_size,
            "preprocessing": PREPROCESSING,
            "operating_point": json.dumps(graph.operating_point),
            "vocabulary": json.dumps({"kind": "words", "pieces": words}, ensure_ascii=False),
            "licence": LICENCE,
        }
        if "fp32" in files:
            finish(source, files["fp32"], {**facts, "precision": "fp32"}, words)
        if "int8" in files:
            say(f"int8: ranges of {options.calibration} training images")
            quantized = quantize_onnx(source, int8, feeds, PROBES, say=say)
            finish(int8, int8, {**facts, "precision": "int8"}, words)
            # Stored as the optimiser leaves it on any CPU, it opens in a third of the time. Its fused operators are
            # ONNX Runtime's own, so the fp32 file stays plain ONNX.
            open_onnx(int8, optimized=files["int8"], level="EXTENDED")
            fuse_biases(files["int8"])
        say(f"comparing on {len(photos)} validation images")
        reference = Captioner(network, graph.num_steps)
        opened = {name: Captioner.load(file, num_threads=options.threads) for name, file in files.items()}
        rows = compare({REFERENCE: reference, **opened}, photos, loaded.config["metrics"], say)
        for row in rows:
            row["file"] = targets[row["variant"]].name if row["variant"] in targets else None
        report = {
            "format_version": FORMAT_VERSION,
            "default": targets[preferred(rows)].name,
            "calibration_images": options.calibration if "int8" in files else 0,
            "threads": options.threads,
            "num_steps": graph.num_steps,
            "length_beam": graph.length_beam,
            "rows": rows,
            "quantized": quantized,
        }
        stale = set(_older(out)) - {target.name for target in targets.values()}
        for precision, file in files.items():
            with atomic_write(targets[precision]) as part:
                file.rename(part)
        if out == folder:
            write_json(out / EXPORT_INDEX, report)
            for name in stale:
                (out / name).unlink(missing_ok=True)
    return report


class CaptioningGraph(nn.Module):
    """The whole captioner as one function of the pixels; what an export traces.

    Args:
        model: In evaluation mode; with one step it decodes no more than that afterwards.
        num_steps: Refinement steps; None takes the model's.
        length_beam: Length candidates; None takes the model's.
    """

    def __init__(self, model: FastCap, num_steps: int | None = None, length_beam: int | None = None) -> None:
        super().__init__()
        self.model = model
        refinement: Any = model.refinement
        self.num_steps = int(num_steps or refinement.num_steps)
        self.length_beam = int(length_beam or refinement.length_beam)
        special, word = refinement.special, cast(Any, model.decoder).word
        if self.num_steps == 1:  # nothing but [MASK] and [PAD] is read: the file needs no other row of the table
            mask, rows = special.mask, word.weight[[special.pad, special.mask]].detach()
            word.forward = lambda ids: torch.embedding(rows, (ids == mask).long())
        point = {"num_steps": self.num_steps, "length_beam": self.length_beam}
        self.operating_point = {**point, "max_length": model.decoder.max_length}

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Caption images.

        Args:
            pixels: uint8, RGB. (B, S, S, 3)

        Returns:
            Token ids (B, L), lengths (B,) and confidences (B,) of the captions; each step's draft, its confidences and
            what was masked again (B, T, L), the drafts' lengths (B,) and the expert weights (B, E). Then the probes:
            scores of lengths (B, L), of concepts (B, C) and of the words of a draft of masks (B, L, V).
        """
        memory = self.model.encode(pixels.permute(0, 3, 1, 2))
        result = self.model.decode(memory, self.num_steps, self.length_beam, record_steps=True)
        drafts, sure, remasked = (
            torch.stack([getattr(step, name) for step in result.steps], dim=1)
            for name in ("tokens", "confidence", "remasked")
        )
        experts = result.expert_weights
        assert experts is not None
        caption = result.tokens.int(), result.lengths.int(), result.scores.exp()
        making = drafts.int(), sure, remasked, result.drafted_lengths.int(), experts.float()
        return (*caption, *making, *self._probes(memory))

    def _probes(self, memory: Tensor) -> tuple[Tensor, ...]:
        """Quantities that every layer has a part in: a caption is a choice, which tells little of rounding errors."""
        decoder = cast(MaskedDecoder, self.model.decoder)
        masks = torch.full((memory.shape[0], decoder.max_length), self.model.refinement.special.mask)
        words = decoder.denoise(masks, torch.zeros_like(masks, dtype=torch.bool), decoder.prepare(memory))
        return self.model.length(memory), self.model.alignment.concepts(memory), words


def write_onnx(graph: CaptioningGraph, image_size: int, path: Path) -> None:
    """Trace the captioner and write it as one ONNX file, for any number of images; with the probes."""
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
        look_up(program.model.graph)
        program.save(traced := path.with_suffix(".traced.onnx"), external_data=False)
    # ONNX Runtime folds constants, and weights that steps share into one: what it writes at this level runs on any CPU.
    open_onnx(traced, optimized=path, level="BASIC")


def finish(source: Path, target: Path, facts: dict[str, Any], pieces: Sequence[str]) -> None:
    """Take the probes out of a file, and write all that is to be known beside the graph into its metadata."""
    import onnx

    model = onnx.load(source)
    drop_outputs(model, PROBES)
    add_words(model, pieces)
    onnx.helper.set_model_props(model, {PREFIX + name: str(value) for name, value in facts.items()})
    onnx.save(model, target)


def add_words(model: Any, pieces: Sequence[str]) -> None:
    """Add an output of the caption's words, (B, L), for languages whose ONNX Runtime shows no metadata."""
    import onnx

    content: Any = [piece.encode() for piece in pieces]
    words = onnx.helper.make_tensor("vocabulary", onnx.TensorProto.STRING, [len(pieces)], content)
    model.graph.initializer.append(words)
    model.graph.node.append(onnx.helper.make_node("Gather", ["vocabulary", "tokens"], ["words"], "words"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("words", onnx.TensorProto.STRING, ["batch", "length"]))


def vocabulary(tokenizer: CaptionTokenizer) -> list[str]:
    """Return the word that each token id stands for, nothing for special tokens.

    Raises:
        UserError: If the tokens are no words.
    """
    model = json.loads(tokenizer.to_json())["model"]
    if model["type"] != "WordLevel":
        raise UserError(f"only vocabularies of words are exported, the checkpoint's is {model['type']}")
    words = {index: word for word, index in model["vocab"].items() if index not in tokenizer.special.ids}
    return [words.get(index, "") for index in range(tokenizer.vocab_size)]


def _targets(out: Path, precisions: Sequence[str]) -> dict[str, Path]:
    """Name the file of each precision, after checking what can be checked before the work."""
    if out.suffix == ".onnx" and not out.is_dir():
        if len(precisions) != 1:
            raise UserError(f"{out}: a file holds one precision: add --precisions fp32 or int8, or name a folder")
        return {precisions[0]: out}
    targets = {precision: out / f"fastcap-{precision}.onnx" for precision in precisions}
    own = _older(out)
    for target in targets.values():
        if target.exists() and target.name not in own:
            raise UserError(f"{target}: exists and is of no export in this folder; move it or name another folder")
    return targets


def _older(folder: Path) -> list[str]:
    """Files of an export that the folder holds already."""
    try:
        rows = json.loads((folder / EXPORT_INDEX).read_text())["rows"]
        return [Path(row["file"]).name for row in rows if row["file"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _records(loaded: LoadedCheckpoint, images: Path | None) -> tuple[CaptionRecords, CaptionRecords]:
    """Open the images of training and validation: the checkpoint's own, or a folder's."""
    if images is not None:
        folder = FolderImages(images, 0.5)
        return folder.split("train"), folder.split("val")
    cfg = OmegaConf.create(loaded.config)
    assert isinstance(cfg, DictConfig)
    datamodule = build_datamodule(cfg, loaded.tokenizer)
    return datamodule.records("train"), datamodule.records("val")


def _spread(records: CaptionRecords, count: int) -> list[int]:
    """Choose images, spread over the whole split."""
    total = len(records.image_ids)
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


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
