"""How well lengths are predicted, and what better ones would be worth: `python lengths.py CHECKPOINT [STEPS]`."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from omegaconf import OmegaConf

from fastcap.build import build_datamodule, load_checkpoint
from fastcap.generation.dlag import top_lengths
from fastcap.metrics import CaptionMetrics

CANDIDATES = range(6, 17)


def main(checkpoint: str, num_steps: int) -> None:
    """Print the table."""
    loaded = load_checkpoint(checkpoint)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    datamodule = build_datamodule(OmegaConf.create(loaded.config), tokenizer)
    memory, ids, references, lengths = [], [], [], []
    with torch.inference_mode():
        for batch in datamodule.dataloader("val"):
            memory.append(model.encode(batch.images))
            ids += batch.image_ids.tolist()
            references += batch.references
            lengths.append(batch.lengths.float())
        memory, lengths = torch.cat(memory), torch.cat(lengths)
        logits = model.length(memory)
    mean = lengths.mean(1)
    first = top_lengths(logits, 1)[:, 0]
    nearest = (first[:, None] - lengths).abs().min(1).values
    print(f"first choice against the references' mean: {(first - mean).abs().mean():.2f} words off on average,")
    print(f"  within one word {100 * ((first - mean).abs() <= 1).float().mean():.1f} %")
    print(
        f"  against the nearest reference: {nearest.mean():.2f}, within one {100 * (nearest <= 1).float().mean():.1f} %"
    )
    # What people themselves do: each reference against the mean of the others.
    others = (lengths.sum(1, keepdim=True) - lengths) / (lengths.shape[1] - 1)
    people = (lengths - others).abs()
    print(f"people, the others' mean: {people.mean():.2f}, within one {100 * (people <= 1).float().mean():.1f} %")

    refinement = model.refinement
    refinement.num_steps, refinement.similarity_weight = num_steps, 0.0

    def captions(scores: torch.Tensor, count: int) -> list[str]:
        refinement.num_lengths = count
        found = []
        with torch.inference_mode():
            for rows, their in zip(memory.split(100), scores.split(100), strict=True):
                out = refinement.generate(model.decoder, rows, their)
                found += [
                    tokenizer.decode(t[:n]) for t, n in zip(out.tokens.tolist(), out.lengths.tolist(), strict=True)
                ]
        return found

    def score(texts: list[str]) -> SimpleNamespace:
        metrics = CaptionMetrics(names=["bleu", "cider"])
        metrics.update(ids, texts, references)
        whole = {name: float(value) for name, value in metrics.compute().items()}
        return SimpleNamespace(cider=whole["cider"], bleu4=whole["bleu4"], images=metrics.compute_per_image())

    def always(wanted: torch.Tensor) -> torch.Tensor:
        return torch.full_like(logits, -1e4).scatter_(1, (wanted.long() - 1)[:, None], 0.0)

    for count in (1, 2, 3, 4, 6):
        found = score(captions(logits, count))
        print(f"{num_steps} steps, predicted, best of {count}: {found.cider:.1f} / {found.bleu4:.1f}")
    found = score(captions(always(mean.round().clamp(max=logits.shape[1])), 1))
    print(f"{num_steps} steps, the references' mean length: {found.cider:.1f} / {found.bleu4:.1f}")
    each = {n: captions(always(torch.full_like(mean, n)), 1) for n in CANDIDATES}
    scored = {n: score(texts) for n, texts in each.items()}
    best = []
    for place, image in enumerate(ids):
        length = max(CANDIDATES, key=lambda n: scored[n].images[image]["cider"])
        best.append(each[length][place])
    for n in CANDIDATES:
        print(f"{num_steps} steps, always {n}: {scored[n].cider:.1f} / {scored[n].bleu4:.1f}")
    found = score(best)
    print(f"{num_steps} steps, the length that scores best for each image: {found.cider:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
