"""Train the captioner that FastCap ships: three encoders teach a smaller one, whose vision and decoder learn together.

Steps read from ``--work`` what those before them left there:

    features  pixels.npy, features.npy  two augmented views of every photograph; three encoders' pooled features of them
    teacher   soft.npy, teacher.npy     concepts of each photograph, by heads that have not learnt from it
    captions  captions_[01].json        captions of the photographs that nobody captioned
    best      best_[01].json            of captions that a captioner writes of the others, those nearest to people's
    joint     joint.ckpt                vision and decoder, together
    best      best_[01].json            once more, by joint.ckpt
    decoder   maps-*.npy, NAME          the decoder alone: on captions, with drafts of its own about the hidden words
    decoder   NAME                      then, with ``--rewards``, on the CIDEr-D of captions that it samples

Photographs are those of FASTCAP_FLICKR8K and FASTCAP_COCO, and without captions those that COCO's
annotations/unlabelled.json lists and those below FASTCAP_UNLABELLED. ``joint`` and ``decoder`` may run in parallel:

    torchrun --nproc-per-node 2 -- experiments/024-joint/recipe.py joint --work DIR --start CKPT --steps 2500

after which, in the same way, came

    decoder --work DIR --start DIR/joint.ckpt --out b.ckpt --steps 900 --drafts 0.35
    decoder --work DIR --start DIR/b.ckpt --out c.ckpt --steps 350 --lr 1e-4 --rewards 2
    decoder --work DIR --start DIR/c.ckpt --out d.ckpt --steps 260 --lr 1e-4 --rewards 2 4

Study 025 put the same decoder behind three encoders, and had the smaller captioner imitate that:

    decoder --work DIR --start DIR/d.ckpt --out large.ckpt --backbone efficientnet_lite012 --size 224 --steps 1000
    joint --work DIR --start DIR/d.ckpt --teacher DIR/large.ckpt --steps 1700
    mean --work DIR --start DIR/joint.ckpt DIR/d.ckpt --out m.ckpt
    decoder --work DIR --start DIR/m.ckpt --teacher DIR/large.ckpt --out e.ckpt --steps 520 --lr 1.5e-4 --rewards 1 2 4
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fastcap.alignment.cmfa import UNTRAINED, ConceptHead, pool
from fastcap.build import CONFIG_DIR, LoadedCheckpoint, build_backbone, build_model, load_checkpoint
from fastcap.data import CocoCaptions, decode_image
from fastcap.data.caches import cache_features
from fastcap.data.coco import parse_annotations, read_results, write_results
from fastcap.data.image_files import find_images
from fastcap.data.mixture import CaptionMixture
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.generation.crf import IMPOSSIBLE, Draft
from fastcap.generation.icmr import lowest, sample_mask
from fastcap.losses import concept_loss, length_loss, scst_loss, token_loss
from fastcap.metrics import CiderD
from fastcap.model import FastCap
from fastcap.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from fastcap.training.machine import cpu_has_bf16, keep_freed_memory
from fastcap.types import IMAGE_MEAN, IMAGE_STD, Encoded, Guidance

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun's
VIEWS, SIDE = 2, 224  # of each photograph: row VIEWS * i + v of the arrays is view v of photograph i
HEADS = 3
BATCH, DECODER_BATCH = 32, 16  # photographs of a step of ``joint`` and of ``decoder``, in each process
CAPTIONS, SAMPLES = 4, 5  # of each photograph in a step of ``decoder``: those learnt from, those written for a reward
FILLERS = """a an the of in on at with and is are to it its his her their by for from as that this there while who which
be has have one two up down out over another other"""  # words that a good caption may repeat
Caption = tuple[int, ...]  # token ids


class Photograph(NamedTuple):
    """A training image: its file, its id as ``data=photographs`` has it, and people's captions, if any."""

    path: Path
    image_id: int
    captions: Sequence[str]


def folder(name: str) -> Path:
    """Return a data set's folder, which the environment names."""
    return Path(os.environ.get(f"FASTCAP_{name.upper()}", f"data/{name}")).expanduser()


def photographs(limit: int | None) -> tuple[list[Photograph], list[Photograph]]:
    """Find the photographs that people captioned, and the others; of both no more than ``limit``."""
    splits = {split: f"annotations/captions_{split}.json" for split in ("train", "extra")}
    captioned: list[Photograph] = []
    for number, source in enumerate(CocoCaptions(folder(name), annotations=splits) for name in ("flickr8k", "coco")):
        for split in (split for split, file in splits.items() if split == "train" or (source.root / file).is_file()):
            found = source.split(split)
            ids = (number * 10**12 + image_id for image_id in found.image_ids)  # as CaptionMixture tells its sets apart
            captioned += map(Photograph, found.paths, ids, found.captions)
    paths = []
    if (listed := folder("coco") / "annotations/unlabelled.json").is_file():
        paths += [folder("coco") / "images" / name for name in parse_annotations(listed)[0].values()]
    if folder("unlabelled").is_dir():
        paths += find_images([folder("unlabelled")]).files
    others = [Photograph(path, 2 * 10**12 + number, ()) for number, path in enumerate(paths)]
    return captioned[:limit], others[:limit]


def bf16() -> torch.autocast:
    """Compute in bf16 where the CPU has instructions for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16())


def as_images(pixels: np.ndarray, size: int) -> Tensor:
    """Turn pixels (B, H, W, 3) into images (B, 3, size, size)."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
    return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def features(options: argparse.Namespace) -> None:
    """Keep two augmented views of each photograph, and the mean and maximum of three encoders' features of them."""
    paths = [photograph.path for part in photographs(options.limit) for photograph in part]
    node = OmegaConf.load(Path(CONFIG_DIR) / "backbone/efficientnet_lite012.yaml")
    encoder: Any = build_backbone(OmegaConf.create({"backbone": node})).eval()
    rows, started = VIEWS * len(paths), time.time()
    create: Any = np.lib.format.open_memmap
    pixels = create(options.work / "pixels.npy", "w+", np.uint8, (rows, SIDE, SIDE, 3))
    pooled = create(options.work / "features.npy", "w+", np.float16, (rows, 2 * encoder.feature_dim))
    mean, deviation = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    for start in range(0, rows, 32):
        part = slice(start, min(start + 32, rows))
        pixels[part] = [augmented(paths[row // VIEWS], random.Random(row)) for row in range(rows)[part]]
        with torch.inference_mode(), bf16():
            maps = encoder.feature_map((as_images(pixels[part], SIDE) - mean) / deviation)
        pooled[part] = pool(maps.float().flatten(1, 2)).half().numpy()
        if start % 1600 == 0 or part.stop == rows:
            print(f"{part.stop} of {rows} views, {part.stop / (time.time() - started):.1f}/s", flush=True)


def augmented(path: Path, draw: random.Random) -> np.ndarray:
    """Decode a photograph, cut out 60 to 100 % of its area in some shape, and mirror half of them."""
    image = Image.fromarray(decode_image(path, SIDE))
    area, shape = draw.uniform(0.6, 1), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = (min(SIDE, round(SIDE * math.sqrt(share))) for share in (area * shape, area / shape))
    left, top = draw.randint(0, SIDE - width), draw.randint(0, SIDE - height)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image)


def teacher(options: argparse.Namespace) -> None:
    """Predict the concepts of photographs by heads that have not learnt from them; people's words count half."""
    captioned, _ = photographs(options.limit)
    loaded, count = load_checkpoint(options.start[0]), len(captioned)
    concepts, labels = loaded.model.alignment.concepts, []
    for texts in loaded.tokenizer.encode_nested([photograph.captions for photograph in captioned]):
        tokens = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in texts], batch_first=True)
        labels.append(concepts.targets(tokens[None])[0])
    people = torch.stack(labels)
    pooled = torch.from_numpy(np.load(options.work / "features.npy"))
    scale = mean_and_deviation(pooled[: VIEWS * count : 3 * VIEWS])
    pooled = pooled.unflatten(0, (-1, VIEWS))
    logits = torch.zeros(len(pooled), VIEWS, people.shape[1])
    order = np.random.RandomState(0).permutation(count)
    for fold in range(HEADS):
        held_out = order[fold::HEADS]
        head = train_head(fold, pooled, people, np.setdiff1d(order, held_out), concepts, scale)
        with torch.inference_mode(), bf16():
            for rows in torch.cat([torch.from_numpy(held_out), torch.arange(count, len(pooled))]).split(250):
                logits[rows] += head(standardised(pooled[rows], scale)).float()
    logits[count:] /= HEADS
    for name, part in concepts.parts.items():
        loss = concept_loss(logits[:count:9, 0, part], people[::9, part], concepts.weights[part])
        print(f"{name}s of photographs that were held out: {loss:.3f} nats", flush=True)
    np.save(options.work / "teacher.npy", logits[count:].mean(1).numpy())
    soft = logits.sigmoid_()
    soft[:count] = (soft[:count] + people[:, None]) / 2
    np.save(options.work / "soft.npy", soft.half().numpy())


def train_head(
    seed: int, pooled: Tensor, people: Tensor, kept: np.ndarray, concepts: ConceptHead, scale: tuple[Tensor, Tensor]
) -> nn.Module:
    """Train a head on the photographs ``kept`` for seven epochs, with mixup (Zhang et al. 2018, arXiv 1710.09412)."""
    torch.manual_seed(seed)
    draw, batch, epochs, width = np.random.RandomState(seed), min(128, len(kept)), 7, pooled.shape[2]
    last = nn.Linear(512, people.shape[1])
    nn.init.constant_(last.bias, -5)  # most concepts are absent
    head = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Dropout(0.2), last)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98))
    steps = epochs * len(kept) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps + 1, pct_start=0.05)
    for epoch in range(epochs):
        order, losses = draw.permutation(kept), []
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            x, y = pooled[rows, torch.randint(0, VIEWS, (batch,))].float(), people[rows]
            if draw.rand() < 0.5:
                share, partner = draw.beta(0.4, 0.4), torch.randperm(batch)
                x, y = share * x + (1 - share) * x[partner], share * y + (1 - share) * y[partner]
            # A channel is lost in mean and maximum alike.
            channels = F.dropout(torch.ones(batch, width // 2), 0.3).repeat(1, 2)
            with bf16():
                logits = head(standardised(x, scale) * channels)
            loss = torch.stack(naming_losses(concepts, logits, y)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"head {seed}, epoch {epoch}: {np.mean(losses):.3f}", flush=True)
    return head.eval()


def mean_and_deviation(pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and standard deviation. (N, 2 D) -> (2 D,) and (2 D,)."""
    return pooled.float().mean(0), pooled.float().std(0, correction=0) + 1e-3


def standardised(pooled: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Bring pooled features (..., 2 D) to mean 0 and deviation 1, without outliers."""
    return ((pooled.float() - scale[0]) / scale[1]).clamp(-6, 6)


def naming_losses(concepts: ConceptHead, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """Return the loss of concepts and that of phrases. (B, C + P)."""
    return [concept_loss(logits[:, p], targets[:, p], concepts.weights[p]) for p in concepts.parts.values()]


def captions(options: argparse.Namespace) -> None:
    """Caption photographs that nobody captioned, guided by the teacher.

    Each captioner of ``--start`` writes two captions: of four lengths the best, and the likeliest length's. The one
    whose triples of words people write is kept, and a second where nearly all of its triples are such.
    """
    captioned, others = photographs(options.limit)
    teacher = torch.from_numpy(np.load(options.work / "teacher.npy"))
    found: list[list[Caption]] = [[] for _ in others]
    for name in options.start:
        loaded = load_checkpoint(name)
        model, tokenizer, concepts = loaded.model, loaded.tokenizer, loaded.model.alignment.concepts
        for start in range(0, len(others), 50):
            part = slice(start, start + 50)
            pixels = np.stack([decode_image(photograph.path, loaded.image_size) for photograph in others[part]])
            with torch.inference_mode():
                encoded = model.encode(as_images(pixels, loaded.image_size))
                logits = teacher[part].masked_fill(concepts.weights == 0, UNTRAINED)
                guidance = Guidance(F.pad(logits.sigmoid(), (1, 0)), concepts.words + 1, concepts.phrases)
                lengths = model.length(encoded.memory)
                written = [write(model, encoded, lengths, guidance, beam) for beam in (4, 1)]
            for place, row in enumerate(zip(*written, strict=True), start):
                found[place] += row
    texts = [text for photograph in captioned for text in photograph.captions]
    if (file := folder("coco") / "annotations/captions_text_only.json").is_file():
        texts += CaptionMixture({"coco": CocoCaptions(folder("coco"))}, text=[str(file)]).text_captions()
    usage, fillers = Counter[Caption](), set(tokenizer.encode(FILLERS))
    for caption in tokenizer.encode_batch(texts):
        usage.update(triples(caption))
    pairs = []
    for candidates in found:
        scores = {}
        for ids in candidates:
            known = np.mean([usage[triple] >= 2 for triple in triples(ids)])
            scores[ids] = float(known) - 0.3 * repeats(ids, fillers) - 0.05 * (len(set(ids) - fillers) < 2)
        pairs.append(two_best(scores, least=0.9))
    write_pairs(options.work, "captions", others, pairs, tokenizer)


def write(model: FastCap, encoded: Encoded, lengths: Tensor, guidance: Guidance, beam: int) -> list[Caption]:
    """Write each image's best caption of the ``beam`` likeliest of the lengths, whose scores are (B, max_length)."""
    settings: Any = (model.decoder, encoded.memory, lengths, model.ngrams, guidance, None, beam)
    found = model.refinement.generate(*settings)
    return trimmed(found.tokens, found.lengths)


def trimmed(tokens: Tensor, lengths: Tensor) -> list[Caption]:
    """Take captions (B, L) out of their padding."""
    return [tuple(ids[:length]) for ids, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def triples(ids: Sequence[int]) -> Iterator[Caption]:
    """Return the threes of neighbouring tokens, begin and end of the caption included."""
    marked = [CaptionTokenizer.special.bos, *ids, CaptionTokenizer.special.eos]
    return zip(marked, marked[1:], marked[2:], strict=False)


def repeats(ids: Sequence[int], fillers: set[int]) -> int:
    """Count the words of content that a caption says again."""
    content = [index for index in ids if index not in fillers]
    return len(content) - len(set(content))


def two_best(scores: dict[Caption, float], least: float = -math.inf) -> tuple[Caption, Caption]:
    """Return the best two captions; the best twice if no other reaches ``least``."""
    first, *others = sorted(scores, key=scores.__getitem__, reverse=True)
    return first, others[0] if others and scores[others[0]] >= least else first


def write_pairs(
    work: Path, name: str, images: list[Photograph], pairs: list[tuple[Caption, Caption]], tokenizer: CaptionTokenizer
) -> None:
    """Write two captions of each photograph as two files, such as ``data.distilled_captions`` takes."""
    for number, captions in enumerate(zip(*pairs, strict=True)):
        rows = zip((photograph.image_id for photograph in images), map(tokenizer.decode, captions), strict=True)
        write_results(work / f"{name}_{number}.json", rows)


def best(options: argparse.Namespace) -> None:
    """Choose two captions of each photograph, of four guided lengths and twelve samples those nearest to people's.

    Near is a high CIDEr-D, less 0.4 for each repeated word of content.
    """
    captioned, _ = photographs(options.limit)
    loaded, started = load_checkpoint(options.start[0]), time.time()
    model, tokenizer = loaded.model, loaded.tokenizer
    tokens = tokenizer.encode_nested([photograph.captions for photograph in captioned])
    reward = CiderD({photograph.image_id: ids for photograph, ids in zip(captioned, tokens, strict=True)})
    pixels, fillers = np.load(options.work / "pixels.npy", mmap_mode="r"), set(tokenizer.encode(FILLERS))
    pairs, gains = [], []
    for start in range(0, len(captioned), 64):
        part = captioned[start : start + 64]
        views = pixels[VIEWS * start + 1 : VIEWS * (start + len(part)) : VIEWS]
        with torch.inference_mode():
            proposed = propose(model, model.encode(as_images(views, loaded.image_size)))
        for photograph, row in zip(part, proposed, strict=True):
            cider = reward([photograph.image_id] * len(row), row)
            scores = {ids: score - 0.4 * repeats(ids, fillers) for ids, score in zip(row, cider, strict=True)}
            pairs.append(two_best(scores))
            gains.append((cider[0], max(scores.values())))
        if start % 640 == 0 or start + 64 >= len(captioned):
            likeliest, chosen = 100 * np.mean(gains, 0)
            told = f"{time.time() - started:.0f} s, likeliest length {likeliest:.1f}, chosen {chosen:.1f}"
            print(f"{len(pairs)} of {len(captioned)} photographs, {told}", flush=True)
    write_pairs(options.work, "best", captioned, pairs, tokenizer)


def propose(model: FastCap, encoded: Encoded, lengths: int = 4, samples: int = 12) -> list[list[Caption]]:
    """Write captions of the likeliest lengths, guided, and sample others. Returns those of each image."""
    guidance = model.alignment.concepts.guidance(encoded.concept_features)
    logits = model.length(encoded.memory)
    found = []
    for length in logits.topk(lengths).indices.T:
        only = torch.full_like(logits, -1e4).scatter(1, length[:, None], 0.0)
        found.append(write(model, encoded, only, guidance, 1))
    sampled = model.sample(encoded, samples)
    drawn = trimmed(sampled.tokens, sampled.lengths)
    return [[*row, *drawn[samples * i : samples * (i + 1)]] for i, row in enumerate(zip(*found, strict=True))]


def joint(options: argparse.Namespace) -> None:
    """Train vision and decoder together: soft concepts, the three encoders' features, people's and own captions."""
    loaded = load_checkpoint(options.start[0], {"backbone.stem.frozen": False})
    model, concepts, special = loaded.model, loaded.model.alignment.concepts, loaded.tokenizer.special
    pixels, pooled = (np.load(options.work / name, mmap_mode="r") for name in ("pixels.npy", "features.npy"))
    soft, scale = torch.from_numpy(np.load(options.work / "soft.npy")), mean_and_deviation(torch.tensor(pooled[::37]))
    texts = caption_pools(options, loaded.tokenizer)
    torch.manual_seed(1)  # the same layer in all processes, which begin with the same weights and stay alike
    regression = nn.Linear(2 * model.alignment.projection.out_features, pooled.shape[1])  # thrown away afterwards
    nn.init.normal_(regression.weight, std=0.02)
    groups = parameter_groups(model, regression)
    large = Large(options, model) if options.teacher else None
    if large is not None:
        groups[-1]["params"] += large.regression.parameters()
    learner = Learner(groups, options.steps, BATCH, warm_up=100, least=0.02, clip=5.0, decay=0.998)
    shuffle, masks = np.random.RandomState(5), torch.Generator().manual_seed(100 + RANK)
    drawn = batches(lambda: shuffle.permutation(len(soft)).tolist(), BATCH)
    model.train()
    for step in range(1, options.steps + 1):
        chosen = next(drawn)
        draw = np.random.RandomState(7 * step + RANK)
        views = draw.randint(0, VIEWS, BATCH)
        rows = VIEWS * np.array(chosen) + views
        images, cut = jittered(pixels[rows], options.size, draw)
        encoded = model.encode(images)
        # 1. What is there, as people and the teacher say, and what the three encoders make of it.
        seen: Any = encoded.concept_features
        present = soft[chosen, views].float()
        if large is not None:
            trust = torch.tensor([0.3 if texts[index][1] else 0.5 for index in chosen])  # people's words count more
            wanted = large.memory(views, chosen)
            present = present.lerp(large.concepts(wanted), trust[:, None])
        concept, phrase = naming_losses(concepts, concepts.memory_head(seen), present)
        imitation = F.smooth_l1_loss(regression(seen), standardised(torch.from_numpy(pooled[rows]), scale))
        # 2. One caption a photograph, most of them hidden whole: decoding in one step sees no other.
        tokens, lengths, places = choose_captions([texts[index] for index in chosen], draw, own=0.6)
        hidden, padding = sample_mask(lengths, tokens.shape[1], 0.7, masks), tokens == special.pad
        memory = encoded.memory[places]
        context = tokens.masked_fill(hidden, special.mask)
        output = model.decoder(context, memory, padding)
        word = token_loss(output.logits, tokens, hidden, label_smoothing=0.1)
        length = length_loss(model.length(memory), lengths[:, None])
        loss = concept + phrase + 4 * imitation + output.aux_loss + 0.1 * length
        parts = {"concept": concept, "phrase": phrase, "features": imitation, "length": length}
        if large is not None:
            parts["memory"] = large.memory_loss(encoded.memory, wanted, cut)
            loss = loss + 4 * parts["memory"]
            word = (word + large.word_loss(output.logits, context, padding, hidden, wanted[places])) / 2
        learner.step(loss + word, word=word, **parts)
        if RANK == 0 and (step % 500 == 0 or step == options.steps):
            save(options, model, learner, step)


def decoder(options: argparse.Namespace) -> None:
    """Train decoder and lengths alone, on the encoder's maps of two views; behind ``--backbone`` what reads them too.

    Of a share ``--drafts`` of captions the context is a draft by the decoding that is shipped, its least certain words
    masked again, as in SMART (Ghazvininejad et al. 2020, arXiv 2001.08785). With ``--rewards`` refinements of those
    numbers of steps, in turns, are sampled and rewarded, and captions count a tenth.
    """
    torch.manual_seed(0)
    loaded = load_checkpoint(options.start[0])
    if options.backbone:
        loaded = behind(loaded, options)
    model, special, refinement = loaded.model.eval(), loaded.tokenizer.special, cast(Any, loaded.model.refinement)
    maps, texts = feature_maps(options.work, model, options.size), caption_pools(options, loaded.tokenizer)
    captioned = [index for index, (_, people) in enumerate(texts) if people]
    others = [] if options.rewards else [index for index, (own, people) in enumerate(texts) if own and not people]
    reward = CiderD({index: texts[index][1] for index in captioned})
    model.requires_grad_(False)
    language = nn.ModuleList([cast(nn.Module, model.decoder), model.length]).requires_grad_(True).train()
    groups = [
        {"params": [p for p in language.parameters() if p.ndim > 1], "weight_decay": 0.05, "lr": options.lr},
        {"params": [p for p in language.parameters() if p.ndim < 2], "weight_decay": 0.0, "lr": options.lr},
    ]
    vision, soft, concepts = [], torch.empty(0), model.alignment.concepts
    if options.backbone:
        reading = ("backbone.norm.", "backbone.position.", "alignment.projection.", "alignment.concepts.memory_head.")
        vision = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(reading)]
        groups.append({"params": vision, "weight_decay": 0.05, "lr": 1e-3})
        soft = torch.from_numpy(np.load(options.work / "soft.npy"))
    large = Large(options, model) if options.teacher else None
    learner = Learner(groups, options.steps, DECODER_BATCH, warm_up=50, least=0.0, clip=1.0, decay=0.997)
    model.train()  # under dropout of the encoder's channels: otherwise memories of these photographs say too much
    shuffle, masks = np.random.RandomState(3), torch.Generator().manual_seed(7 + RANK)

    def epoch() -> list[int]:  # all that people captioned, and a quarter of the others
        some = shuffle.choice(others, len(others) // 4, replace=False).astype(int).tolist()
        order: list[int] = shuffle.permutation(captioned + some).tolist()
        return order

    drawn = batches(epoch, DECODER_BATCH)
    for step in range(1, options.steps + 1):
        chosen, draw = next(drawn), np.random.RandomState(7 * step + RANK)
        views = draw.randint(0, VIEWS, DECODER_BATCH)
        with torch.set_grad_enabled(bool(vision)):
            encoded = model.encode_map(torch.from_numpy(maps[views, chosen]))
        tokens, lengths, places = choose_captions([texts[i] for i in chosen for _ in range(CAPTIONS)], draw, own=0.7)
        hidden, padding = sample_mask(lengths, tokens.shape[1], 0.7, masks), tokens == special.pad
        context = tokens.masked_fill(hidden, special.mask)
        if options.drafts:
            words, certainty = draft(model, encoded, context, padding)
            use = torch.rand(len(lengths), generator=masks) < options.drafts
            count = (lengths * (0.15 + 0.5 * torch.rand(len(lengths), generator=masks))).long().clamp(min=1)
            score = certainty.masked_fill(~hidden, 0.0) + 0.3 * torch.randn(certainty.shape, generator=masks)
            again = lowest(score.masked_fill(padding, math.inf), count)
            context = torch.where(use[:, None], words.masked_fill(again, special.mask), context)
            hidden = torch.where(use[:, None], again, hidden)
        output = model.decoder(context, encoded.memory, padding)
        word = token_loss(output.logits, tokens, hidden, label_smoothing=0.1)
        if large is not None:
            wanted = large.memory(views, chosen)[places // CAPTIONS]
            word = (word + large.word_loss(output.logits, context, padding, hidden, wanted)) / 2
        length = length_loss(model.length(encoded.memory), lengths.view(-1, CAPTIONS))
        loss, parts = word + 0.1 * length, {"word": word, "length": length}
        if vision:
            logits = concepts.memory_head(cast(Tensor, encoded.concept_features))
            parts["concepts"] = torch.stack(naming_losses(concepts, logits, soft[chosen, views].float())).sum()
            loss = loss + 0.5 * parts["concepts"]
        if options.rewards:
            refinement.num_steps = options.rewards[step % len(options.rewards)]
            sampled = model.sample(encoded, SAMPLES)
            cider = reward([i for i in chosen for _ in range(SAMPLES)], trimmed(sampled.tokens, sampled.lengths))
            rewards = torch.tensor(cider).view(-1, SAMPLES)
            loss, parts["reward"] = 0.1 * loss + scst_loss(sampled, rewards), rewards.mean()
        learner.step(loss + output.aux_loss, **parts)
    if RANK == 0:
        built = {key: loaded.config[key] for key in ("backbone", "alignment")}
        save(options, model, learner, options.steps, **built)


def mean(options: argparse.Namespace) -> None:
    """Average the weights of captioners that came from the same one (Wortsman et al. 2022, arXiv 2203.05482)."""
    first, *others = (read_checkpoint(name) for name in options.start)
    for name, value in first["state_dict"].items():
        if value.is_floating_point():
            first["state_dict"][name] = torch.stack([value, *(other["state_dict"][name] for other in others)]).mean(0)
    AtomicCheckpointIO().save_checkpoint(first, options.work / options.out)


def behind(loaded: LoadedCheckpoint, options: argparse.Namespace) -> LoadedCheckpoint:
    """Put a captioner behind another, frozen encoder: what reads its maps is new, what writes is not."""
    node = OmegaConf.load(Path(CONFIG_DIR) / f"backbone/{options.backbone}.yaml")
    config = loaded.config | {"backbone": OmegaConf.to_container(node)}
    config["alignment"] = config["alignment"] | {"feature_dropout": 0.3}
    model = build_model(OmegaConf.create(config), loaded.tokenizer)
    kept = ("alignment.concepts.", "decoder.", "length.", "ngrams.")
    state = {name: value for name, value in loaded.model.state_dict().items() if name.startswith(kept)}
    model.load_state_dict(state, strict=False)
    return replace(loaded, model=model, config=config)


def feature_maps(work: Path, model: FastCap, size: int) -> np.ndarray:
    """Return the encoder's maps of all views at some size (V, N, h, w, D), in half precision, computed once."""
    pixels = np.load(work / "pixels.npy", mmap_mode="r")

    def encode(view: int, index: np.ndarray) -> Tensor:
        with bf16():
            return model.backbone.feature_map(model.normalize(as_images(pixels[VIEWS * index + view], size)))

    key = [size, cpu_has_bf16(), hashes(getattr(model.backbone, "stem", model.backbone).net)]
    return cache_features(work, "maps", key, VIEWS, len(pixels) // VIEWS, encode)


def hashes(module: nn.Module) -> list[float]:
    """Return what changes with the weights of a module, to name what is kept of its outputs."""
    return [torch.hash_tensor(value).item() for value in module.state_dict().values()]


@torch.no_grad()
def draft(model: FastCap, encoded: Encoded, context: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Write what ``context`` (B * K, L) masks as the first step of decoding would. Returns words and certainty."""
    language, refinement = cast(Any, model.decoder), cast(Any, model.refinement)
    guidance = model.alignment.concepts.guidance(encoded.concept_features)
    language.eval()
    logits = language.denoise(context, padding, language.prepare(encoded.memory))
    language.train()
    likely = guidance.probability.index_select(1, guidance.words).repeat_interleave(CAPTIONS, 0)
    logits = logits + refinement.guidance_weights.word_bias * likely.unsqueeze(1)
    logits[..., list(CaptionTokenizer.special.ids)] = IMPOSSIBLE
    choose = refinement._choose(model.ngrams, refinement.ngram_weights, guidance, longest=20)
    hidden = context == CaptionTokenizer.special.mask
    chosen = choose(logits, Draft(context, hidden, padding))
    return torch.where(hidden, chosen.words, context), chosen.certainty


def caption_pools(options: argparse.Namespace, tokenizer: CaptionTokenizer) -> list[list[list[list[int]]]]:
    """Read what captions each photograph has to learn from, as token ids: a captioner's, and people's."""
    own: dict[int, list[str]] = {}
    for file in sorted(options.work.glob("*_[01].json")):
        for image_id, caption in read_results(file).items():
            own.setdefault(image_id, []).append(caption)
    pools = []
    for photograph in (photograph for part in photographs(options.limit) for photograph in part):
        both = tokenizer.encode_nested([own.get(photograph.image_id, []), photograph.captions])
        pools.append([[ids for ids in captions if 0 < len(ids) <= 20] for captions in both])
    return pools


def choose_captions(pools: Sequence[Any], draw: np.random.RandomState, own: float) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a caption of each photograph that has any: where there are both kinds, a share ``own`` of a captioner's.

    Returns:
        Tokens (K, L), lengths (K,), and the place of each one's photograph among the pools (K,).
    """
    chosen = {}
    for place, both in enumerate(pools):
        if kinds := [captions for captions in both if captions]:
            captions = kinds[0] if len(kinds) == 1 or draw.rand() < own else kinds[1]
            chosen[place] = torch.tensor(captions[draw.randint(len(captions))])
    tokens = pad_sequence([*chosen.values()], True, CaptionTokenizer.special.pad)
    return tokens, torch.tensor([len(ids) for ids in chosen.values()]), torch.tensor([*chosen])


class Cut(NamedTuple):
    """Where of views of SIDE pixels images were cut out, and which of them are mirrored (B,)."""

    side: int
    top: int
    left: int
    mirrored: Tensor


def jittered(pixels: np.ndarray, size: int, draw: np.random.RandomState) -> tuple[Tensor, Cut]:
    """Cut one square of 180 to 224 px out of all images; blur, sharpen, change colours and contrast; mirror half."""
    side = draw.randint(180, SIDE + 1)
    top, left = draw.randint(0, SIDE + 1 - side, 2)
    images = as_images(pixels[:, top : top + side, left : left + side].astype(np.float32), size)
    some = torch.rand(len(images)) < 0.4
    blurred = F.avg_pool2d(F.pad(images[some], (1, 1, 1, 1), mode="replicate"), 3, 1)
    images[some] += (2.2 * torch.rand(len(blurred), 1, 1, 1) - 1) * (images[some] - blurred)
    around_one = [1 + most * (2 * torch.rand(len(images), 1, 1, 1) - 1) for most in (0.4, 0.3, 0.25)]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * around_one[0]
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * around_one[1]) * around_one[2]
    mirrored = torch.rand(len(images)) < 0.5
    images[mirrored] = images[mirrored].flip(3)
    return images.clamp(0, 255), Cut(side, top, left, mirrored)


class Large:
    """A larger captioner that a smaller one imitates: its image memory, its concepts, its words.

    Args:
        options: ``--teacher`` is its checkpoint.
        model: The smaller captioner.
    """

    def __init__(self, options: argparse.Namespace, model: FastCap) -> None:
        loaded = load_checkpoint(options.teacher)
        self.model = loaded.model.requires_grad_(False)
        maps = feature_maps(options.work, self.model, loaded.image_size)

        def encode(view: int, index: np.ndarray) -> Tensor:
            return self.model.encode_map(torch.from_numpy(maps[view, index])).memory.unflatten(1, maps.shape[2:4])

        key = [loaded.image_size, cpu_has_bf16(), hashes(self.model)]
        self.memories = cache_features(options.work, "memory", key, VIEWS, maps.shape[1], encode)
        some = torch.tensor(self.memories[:, ::37]).flatten(0, -2)
        self.scale = mean_and_deviation(some)
        self.regression = nn.Linear(model.alignment.projection.out_features, some.shape[1])  # thrown away afterwards

    def memory(self, views: np.ndarray, chosen: list[int]) -> Tensor:
        """Return its image memory of views, (B, N, D)."""
        return torch.from_numpy(self.memories[views, chosen]).float().flatten(1, 2)

    @torch.no_grad()
    def concepts(self, memory: Tensor) -> Tensor:
        """Return how likely it finds concepts and phrases, (B, C + P), by its image memory (B, N, D)."""
        return self.model.alignment.concepts.guidance(pool(memory)).probability[:, 1:]

    def memory_loss(self, memory: Tensor, wanted: Tensor, cut: Cut) -> Tensor:
        """Compare image memories of a cut (B, N, D) with its own of the whole views, at the same places."""
        side = math.isqrt(memory.shape[1])
        offsets = (torch.arange(side) + 0.5) / side * cut.side
        y, x = (2 * (start + offsets) / SIDE - 1 for start in (cut.top, cut.left))
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(memory), -1, -1, -1)
        maps = wanted.mT.unflatten(2, (math.isqrt(wanted.shape[1]), -1))
        theirs = F.grid_sample(maps, places, padding_mode="border", align_corners=False)
        theirs[cut.mirrored] = theirs[cut.mirrored].flip(3)
        return F.smooth_l1_loss(self.regression(memory), standardised(theirs.flatten(2).mT, self.scale))

    def word_loss(self, logits: Tensor, context: Tensor, padding: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        """Compare words (B, L, V) with its own of the same contexts, by its memory (Hinton et al. 2015, 1503.02531)."""
        with torch.no_grad():
            wanted = cast(Any, self.model.decoder)(context, memory, padding).logits[hidden].softmax(-1)
        return F.cross_entropy(logits[hidden], wanted)


def parameter_groups(model: FastCap, regression: nn.Linear) -> list[dict[str, Any]]:
    """Choose what learns, and how fast.

    Of Lite0 the first three stages do not learn and need no gradients; of the sixth, by far the largest, norms and
    depthwise convolutions learn; of the others everything does.
    """
    net, alignment, decoder = model.backbone.stem.net, model.alignment, cast(nn.Module, model.decoder)
    fixed = ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")
    later = {name: p for name, p in net.named_parameters() if not name.startswith(fixed)}
    stem = [p for name, p in later.items() if not name.startswith("blocks.5") or p.ndim == 1 or p.shape[1] == 1]
    for part in (net.conv_stem, *net.blocks[:3]):
        part.forward = without_gradients(part.forward, widen=part is net.blocks[2])
    vision = [p for name, p in model.backbone.named_parameters() if ".net." not in name]
    vision += [*alignment.projection.parameters(), *alignment.concepts.memory_head.parameters()]
    language = [*decoder.parameters(), *model.length.parameters()]
    model.requires_grad_(False)
    for parameter in [*stem, *vision, *language]:
        parameter.requires_grad_(True)
    return [
        {"params": stem, "lr": 4e-4, "weight_decay": 0.02},
        {"params": vision, "lr": 5e-4, "weight_decay": 0.05},
        {"params": language, "lr": 3e-4, "weight_decay": 0.05},
        {"params": [*regression.parameters()], "lr": 1e-3},
    ]


def without_gradients(forward: Callable[[Tensor], Tensor], widen: bool) -> Callable[[Tensor], Tensor]:
    """Run a part that does not learn without gradients, in bf16; ``widen`` what it hands to those that do."""

    def run(x: Tensor) -> Tensor:
        with torch.no_grad(), bf16():
            y = forward(x)
        return y.float() if widen else y

    return run


def batches(epoch: Callable[[], list[int]], size: int) -> Iterator[list[int]]:
    """Draw this process's photographs of each step, epoch after epoch."""
    order: list[int] = []
    while True:
        if len(order) < size * RANKS:
            order = epoch()
        yield [order.pop() for _ in range(size * RANKS)][RANK * size : (RANK + 1) * size]


class Learner:
    """AdamW in all processes: a linear warm-up, half a cosine, clipped gradients, an average of the weights.

    Args:
        groups: Parameters with their learning rates and weight decays.
        steps: Steps in all.
        batch: Photographs of a step in each process.
        warm_up: Steps until the learning rates are full.
        least: Share of them that the cosine ends at.
        clip: Largest norm of the gradients.
        decay: Of the average, which forgets faster at first.
    """

    def __init__(
        self, groups: list[Any], steps: int, batch: int, warm_up: int, least: float, clip: float, decay: float
    ) -> None:
        self.steps, self.batch, self.clip, self.decay = steps, batch, clip, decay
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

        def share(done: int) -> float:
            cosine = (1 + math.cos(math.pi * (done + 1) / steps)) / 2
            return min(1, (done + 1) / warm_up) * (least + (1 - least) * cosine)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, share)
        self.done, self.started = 0, time.time()
        self.losses: list[Tensor] = []

    def step(self, loss: Tensor, **parts: Tensor) -> None:
        """Descend; the means of ``parts`` are printed now and then."""
        self.optimizer.zero_grad()
        loss.backward()
        if RANKS > 1:
            average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        decay = min(self.decay, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(self.average, [p.data for p in self.parameters], 1 - decay)
        self.losses.append(torch.stack([*parts.values()]).detach())
        if RANK == 0 and (self.done % 25 == 0 or self.done == self.steps):
            means = zip(parts, torch.stack(self.losses).mean(0), strict=True)
            rate = self.done * self.batch * RANKS / (time.time() - self.started)
            print(self.done, *(f"{name} {value:.3f}" for name, value in means), f"{rate:.1f} images/s", flush=True)
            self.losses.clear()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients, in one exchange."""
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / RANKS)


def save(options: argparse.Namespace, model: FastCap, learner: Learner, step: int, **built: Any) -> None:
    """Write a checkpoint of the averaged weights, which captions at the size that they were trained at.

    ``built`` are the parts of the configuration in which the model is another than what it started from.
    """
    artifacts = read_checkpoint(options.start[0])["fastcap"]
    artifacts["config"] |= built
    artifacts["config"]["data"] |= {"image_size": options.size, "eval_image_size": None}
    average = dict(zip(learner.parameters, learner.average, strict=True))
    state = model.state_dict() | {name: average[p] for name, p in model.named_parameters() if p in average}
    # Of the shipped model some tables are in half precision; a checkpoint to go on from has all in full.
    state = {f"model.{k}": value.float() if value.is_floating_point() else value for k, value in state.items()}
    checkpoint = {"fastcap": artifacts, "state_dict": state, "global_step": step}
    AtomicCheckpointIO().save_checkpoint(checkpoint, options.work / (options.out or f"{options.step}.ckpt"))


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    functions = (features, teacher, captions, best, joint, mean, decoder)
    steps: dict[str, Any] = {step.__name__: step for step in functions}
    parser.add_argument("step", choices=steps)
    parser.add_argument("--work", type=Path, required=True, help="folder of all that the steps make")
    parser.add_argument("--start", nargs="+", default=["pretrained"], help="captioner; captions and mean take several")
    parser.add_argument("--size", type=int, default=192, help="side of the images of joint and decoder, in pixels")
    parser.add_argument("--steps", type=int, default=2500, help="steps of joint and decoder")
    parser.add_argument("--out", help="checkpoint of joint and decoder within --work, if not of the step's name")
    parser.add_argument("--teacher", help="larger captioner that joint and decoder imitate")
    parser.add_argument("--backbone", help="configuration of a frozen encoder that decoder is put behind")
    parser.add_argument("--drafts", type=float, default=0.0, help="share of decoder's captions with a draft as context")
    parser.add_argument("--rewards", type=int, nargs="+", help="steps of the captions that decoder is rewarded for")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of decoder")
    parser.add_argument("--limit", type=int, help="so many photographs with and without captions, to try a step")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    if RANKS > 1:
        distributed.init_process_group("gloo")
    steps[options.step](options)


if __name__ == "__main__":
    main()
