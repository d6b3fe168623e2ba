"""Beam search with a key/value cache, for the autoregressive baseline."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastcap.generation.crf import RerankWeights, rerank
from fastcap.generation.ngrams import NGrams
from fastcap.types import CausalDecoder, Guidance, Past, Refinement, SpecialTokens


class BeamSearch:
    """Beam search over a causal decoder; one beam is greedy decoding. It owns no weights.

    A candidate that wrote [EOS] keeps its place among the beams by its log-probability; in the end the best mean
    log-probability a token, [EOS] included, wins. A caption does not depend on what shares its batch.

    Args:
        special: The special token ids.
        num_beams: Candidates kept at each word.
        guidance: ``RerankWeights`` by name: how the best candidate is chosen in the end.

    Raises:
        ValueError: If num_beams is below one or the weight negative.
    """

    causal = True

    def __init__(self, special: SpecialTokens, num_beams: int = 1, guidance: Mapping[str, float] | None = None) -> None:
        if num_beams < 1:
            raise ValueError(f"refinement.num_beams = {num_beams} must be at least 1")
        self.special = special
        self.num_beams = num_beams
        self.guidance_weights = RerankWeights(**(guidance or {}))

    @torch.no_grad()
    def generate(
        self,
        decoder: CausalDecoder,
        memory: Tensor,
        length_logits: Tensor | None = None,
        ngrams: NGrams | None = None,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        length_beam: int | None = None,
        record_steps: bool = False,
    ) -> Refinement:
        """Caption a batch of images.

        Args and result are those of ``ICMRDecoder.generate``. Lengths and n-grams are not read, as [EOS] ends a caption
        and the words before are known when each is written; no word is ever changed, so there are no steps.

        Raises:
            ValueError: If steps or lengths are asked for, or concepts are to be weighed and there are none.
        """
        for name, value in (("num_steps", num_steps), ("length_beam", length_beam)):
            if value is not None:
                raise ValueError(f"{name} = {value}: this model writes word after word and refines nothing")
        self.guidance_weights.check(guidance)
        images, beams, device = memory.shape[0], self.num_beams, memory.device
        cache = decoder.prepare(memory)
        longest = decoder.max_length
        rows = torch.arange(images, device=device).unsqueeze(1)
        words = torch.full((images, beams, longest + 1), self.special.pad, dtype=torch.long, device=device)
        done = torch.zeros(images, beams, dtype=torch.bool, device=device)
        last = torch.full((images * beams, 1), self.special.bos, dtype=torch.long, device=device)
        # Only the first beam counts at first, or all of them would hold the same words.
        total = torch.full((images, beams), -torch.inf, device=device)
        total[:, 0] = 0.0
        past: list[Past] | None = None
        for length in range(longest + 1):
            logits, past = decoder.predict(last, cache, past)
            scores = self._allowed(logits[:, -1], length, longest).log_softmax(-1).view(images, beams, -1)
            # An ended candidate goes on in one way only, at no cost.
            scores = scores.masked_fill(done.unsqueeze(2), -torch.inf)
            scores[..., self.special.pad] = scores[..., self.special.pad].masked_fill(done, 0.0)
            total, index = (total.unsqueeze(2) + scores).flatten(1).topk(beams, dim=1)
            parent, word = index // scores.shape[2], index % scores.shape[2]
            words, done = words[rows, parent], done[rows, parent] | (word == self.special.eos)
            words[:, :, length] = word
            if bool(done.all()):
                break
            last = word.view(-1, 1)
            if beams > 1:
                order = (rows * beams + parent).flatten()
                past = [(k.index_select(0, order), v.index_select(0, order)) for k, v in past]
        lengths = ((words != self.special.pad) & (words != self.special.eos)).sum(2)
        means = total / (lengths + 1)
        words = words[:, :, :longest].masked_fill(words[:, :, :longest] == self.special.eos, self.special.pad)
        best = rerank(means, words, lengths, self.guidance_weights, guidance)
        chosen, at = words[rows.squeeze(1), best], lengths.gather(1, best.unsqueeze(1)).squeeze(1)
        score = means.gather(1, best.unsqueeze(1)).squeeze(1)
        return Refinement(chosen, at, score, at, [], cache.expert_weights)

    def _allowed(self, logits: Tensor, length: int, longest: int) -> Tensor:
        """Logits of what may come next: no special token; [EOS] after the first word, alone at the end."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits.clone()
        end = logits[:, self.special.eos].clone()
        if length == longest:
            logits = torch.full_like(logits, -torch.inf)
        logits[:, list(self.special.ids)] = -torch.inf
        if length > 0:
            logits[:, self.special.eos] = end
        return logits
