"""Iterative Conditional Masked Refinement: draft a caption whole, then rewrite its least certain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcap.generation.crf import (
    CRF,
    IMPOSSIBLE,
    Choose,
    Draft,
    GuidanceWeights,
    NGramWeights,
    Transitions,
    argmax,
    rerank,
    sample,
)
from fastcap.generation.dlag import top_lengths
from fastcap.generation.ngrams import NGrams
from fastcap.types import Guidance, MaskedDecoder, Refinement, Sampled, SpecialTokens, StepTensors
from fastcap.utils.rng import RandomSource, uniform


class ICMRDecoder:
    """Mask-Predict (Ghazvininejad et al. 2019, arXiv 1904.09324) around any ``MaskedDecoder``. It owns no weights.

    Every sample keeps its own length, so a caption does not depend on what shares its batch. Special tokens are never
    written. A token keeps the confidence it was written with until it is masked again.

    While ``torch.export`` traces, all steps are run, as nothing may be decided by the data. Captions are the same.

    Args:
        special: The special token ids.
        num_steps: Decoder passes T.
        schedule: How many tokens are masked again after each step: ``linear`` or ``cosine``.
        length_beam: Length candidates an image, refined as one batch; the best mean log-probability wins.
        lattice_width: Words considered at each position where they are chosen together (``fastcap.generation.crf``),
            which they are as soon as a weight of n-grams or ``guidance.bigram_bias`` is above zero.
        num_paths: Candidates that the last step reads off the lattice, of each length.
        ngram_weights: Weights ``bigram`` and ``trigram`` of the language model, in the lattice and among candidates.
        guidance: ``GuidanceWeights`` by name.
        collapse_repeats: In the end write a token that follows itself once (Lee et al. 2018, arXiv 1802.06901): the
            typical fault of words chosen in parallel.

    Raises:
        ValueError: If num_steps, length_beam, lattice_width or num_paths is below one, the schedule is unknown, a
            weight negative, or several paths are asked for without a lattice.
    """

    causal = False

    def __init__(
        self,
        special: SpecialTokens,
        num_steps: int = 1,
        schedule: str = "linear",
        length_beam: int = 3,
        lattice_width: int = 4,
        num_paths: int = 1,
        ngram_weights: Mapping[str, float] | None = None,
        guidance: Mapping[str, float] | None = None,
        collapse_repeats: bool = False,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"refinement.schedule = {schedule!r} must be one of {', '.join(SCHEDULES)}")
        self.special = special
        self.num_steps = _count("num_steps", num_steps)
        self.schedule = SCHEDULES[schedule]
        self.length_beam = _count("length_beam", length_beam)
        self.lattice_width = _count("lattice_width", lattice_width)
        self.ngram_weights = NGramWeights(**(ngram_weights or {}))
        self.guidance_weights = GuidanceWeights(**(guidance or {}))
        self.collapse_repeats = collapse_repeats
        self.num_paths = _count("num_paths", num_paths)
        if num_paths > 1 and not (any(vars(self.ngram_weights).values()) or self.guidance_weights.bigram_bias):
            raise ValueError(f"refinement.num_paths = {num_paths} needs a weight of n-grams or guidance.bigram_bias")

    @torch.no_grad()
    def generate(
        self,
        decoder: MaskedDecoder,
        memory: Tensor,
        length_logits: Tensor,
        ngrams: NGrams | None = None,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        length_beam: int | None = None,
        record_steps: bool = False,
    ) -> Refinement:
        """Caption a batch of images.

        Args:
            decoder: The trained decoder.
            memory: Image memory. (B, N, D)
            length_logits: Scores of the lengths 1..max_length. (B, max_length)
            ngrams: The language model, needed where words are chosen together.
            guidance: What the images say, needed where a weight of ``guidance`` is above zero.
            num_steps: Decoder passes, if not those of the configuration.
            length_beam: Length candidates, likewise.
            record_steps: Keep every step of the chosen candidates.

        Returns:
            The best candidate of each image.

        Raises:
            ValueError: If something is to be weighed and there is nothing to tell it, or a number is below one.
        """
        num_steps = _count("num_steps", self.num_steps if num_steps is None else num_steps)
        length_beam = _count("length_beam", self.length_beam if length_beam is None else length_beam)
        self.guidance_weights.check(guidance)
        # 1. The likeliest lengths, K an image, in consecutive rows.
        candidates = top_lengths(length_logits, length_beam)
        (images, beam), lengths = candidates.shape, candidates.flatten()
        choose = self._choose(ngrams, self.ngram_weights, guidance, longest=length_logits.shape[1])
        bias: Tensor | None = None
        if guidance and self.guidance_weights.word_bias > 0:
            likely = guidance.probability.index_select(1, guidance.words).repeat_interleave(beam, dim=0)
            bias = self.guidance_weights.word_bias * likely.unsqueeze(1)
        cache = decoder.prepare(memory)
        refined = self._refine(decoder, cache, lengths, choose, num_steps, record_steps, bias, self.num_paths)
        tokens, confidence, beyond, lengths, steps = refined

        # 5. The candidate whose words are likeliest on average, go together and name what is there.
        scores, drafted = confidence.sum(1) / lengths, lengths
        total = scores if beyond is None else scores + beyond / lengths
        tokens, lengths = self._collapse(tokens, lengths)
        finished = total.view(images, -1), tokens.view(images, -1, tokens.shape[1]), lengths.view(images, -1)
        best = rerank(*finished, self.guidance_weights, guidance)
        best = best + torch.arange(images, device=memory.device) * finished[0].shape[1]
        pick = partial(torch.index_select, dim=0, index=best)
        chosen = [StepTensors(*map(pick, (s.tokens, s.confidence, s.remasked))) for s in steps]
        experts = getattr(cache, "expert_weights", None)
        return Refinement(pick(tokens), pick(lengths), pick(scores), pick(drafted), chosen, experts)

    def sample(
        self,
        decoder: MaskedDecoder,
        memory: Tensor,
        length_logits: Tensor,
        num_samples: int,
        temperature: float = 1.0,
        ngrams: NGrams | None = None,
    ) -> Sampled:
        """Sample captions by the same refinement, for training on rewards: lengths and words at random, all else alike.

        Concept guidance is left out: rewarded beside it, the decoder comes to leave to it what it should say itself
        (experiments/018-naming). Trigrams are left out too: to look up those of thousands of samples would take as long
        as the decoder. Randomness comes from torch's global generator.

        Args:
            decoder: The decoder in training.
            memory: Image memory. (B, N, D)
            length_logits: Scores of the lengths 1..max_length. (B, max_length)
            num_samples: Captions an image.
            temperature: Of the words' distribution.
            ngrams: The language model, needed where bigrams are weighed.

        Returns:
            Captions, with gradients in the log-probability of each word at the step it was last written and in that of
            the length. (B * num_samples, L)
        """
        distribution = length_logits.float().log_softmax(-1)
        drawn = torch.multinomial(distribution.exp(), num_samples, replacement=True)
        lengths = drawn.flatten() + 1
        choose = self._choose(ngrams, NGramWeights(bigram=self.ngram_weights.bigram), temperature=temperature)
        tokens, decision, *_ = self._refine(decoder, decoder.prepare(memory), lengths, choose, self.num_steps)
        words = tokens != self.special.pad
        return Sampled(*self._collapse(tokens, lengths), decision, words, distribution.gather(1, drawn).flatten())

    def _choose(
        self,
        ngrams: NGrams | None,
        weights: NGramWeights,
        guidance: Guidance | None = None,
        temperature: float | None = None,
        longest: int | None = None,
    ) -> Choose:
        """Return how the words of a step are chosen: without a temperature the best, else sampled at it."""
        bias = self.guidance_weights.bigram_bias if guidance else 0.0
        if not (weights.bigram or weights.trigram or bias):
            return argmax if temperature is None else partial(sample, temperature=temperature)
        if ngrams is None:
            raise ValueError("refinement.ngram_weights and refinement.guidance.bigram_bias need a table of n-grams")
        return CRF(Transitions(ngrams, weights, guidance, bias), self.lattice_width, temperature, longest)

    def _refine(
        self,
        decoder: MaskedDecoder,
        cache: Any,
        lengths: Tensor,
        choose: Choose,
        num_steps: int,
        record_steps: bool = False,
        bias: Tensor | None = None,
        num_paths: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, list[StepTensors]]:
        """Refine captions of given lengths (B * K,), ``bias`` (B * K, 1, V) added to the logits.

        Returns:
            Tokens, log-probabilities of their choices, the captions' scores beyond them, their lengths, and the steps;
            ``num_paths`` captions a row, one after the other, unless all words stood before the last step.
        """
        if static := torch.compiler.is_exporting():
            shortest, longest = 0, lengths.max().clamp(min=2).item()  # a single position would be traced apart
            torch._check(longest >= 2)
            torch._check(longest <= decoder.max_length)
        else:
            shortest, longest = torch.stack(lengths.aminmax()).tolist()
        # 2. Start from nothing but [MASK].
        pad = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
        tokens = torch.full_like(pad, self.special.mask, dtype=torch.long).masked_fill(pad, self.special.pad)
        steps: list[StepTensors] = []

        for step in range(1, num_steps + 1):
            # 3. Predict all, write where masked.
            logits = decoder.denoise(tokens, pad if shortest < longest else None, cache)
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            if step == 1:  # special tokens are never written
                special = torch.tensor(self.special.ids, device=logits.device)
                gain = logits.new_zeros(logits.shape[-1]).index_fill(0, special, IMPOSSIBLE)
                gain = gain if bias is None else bias.to(logits.dtype) + gain
            masked = tokens == self.special.mask
            paths = num_paths if step == num_steps else 1
            written, certainty, decided, transitions = choose(logits + gain, Draft(tokens, masked, pad), paths)
            if step == 1:
                confidence, decision = (torch.zeros_like(logits[..., 0]) for _ in range(2))
            if paths > 1:
                several = partial(torch.repeat_interleave, repeats=paths, dim=0)
                tokens, masked, pad, confidence = map(several, (tokens, masked, pad, confidence))
                decision, lengths = several(decision), several(lengths)
                steps = [StepTensors(*map(several, (s.tokens, s.confidence, s.remasked))) for s in steps]
            tokens = torch.where(masked, written, tokens)
            confidence = torch.where(masked, certainty.detach(), confidence)
            decision = torch.where(masked, decided, decision)
            # 4. Mask the least certain again; none after the last step.
            count = num_to_remask(lengths, step, num_steps, self.schedule)
            done = step == num_steps or (not static and not bool(count.any()))
            remasked = torch.zeros_like(pad) if done else lowest(confidence.masked_fill(pad, 1.0), count)
            if record_steps:
                steps.append(StepTensors(tokens, confidence.exp().masked_fill(pad, 0.0), remasked))
            if done:
                break
            tokens = tokens.masked_fill(remasked, self.special.mask)
        return tokens, decision, transitions, lengths, steps

    def _collapse(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out tokens that equal the one before, if asked to; returns tokens (B, L) and lengths (B,)."""
        if not self.collapse_repeats:
            return tokens, lengths
        pad, length = self.special.pad, tokens.shape[1]
        before = torch.cat([torch.full_like(tokens[:, :1], pad), tokens[:, :-1]], dim=1)
        kept = (tokens != before) & (tokens != pad)
        # What is left out goes to one more place, which is cut off.
        place = torch.where(kept, kept.cumsum(1) - 1, length)
        shown = torch.full_like(before[:, :1], pad).repeat(1, length + 1).scatter(1, place, tokens)
        return shown[:, :length], kept.sum(1)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value!r} must be a whole number, at least 1")
    return value


def linear(progress: float) -> float:
    """Share of tokens still masked after ``progress`` of the steps (Mask-Predict, arXiv 1904.09324)."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Share of tokens still masked after ``progress`` of the steps (MaskGIT, arXiv 2202.04200)."""
    return math.cos(math.pi / 2 * progress)


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": linear, "cosine": cosine}


def num_to_remask(lengths: Tensor, step: int, num_steps: int, schedule: Callable[[float], float]) -> Tensor:
    """Tokens of each caption to hide again after ``step`` (1-based) of ``num_steps``; zero after the last.

    Args:
        lengths: Content tokens. (B,)
        step: Steps done.
        num_steps: Steps in all.
        schedule: Share of tokens masked at a progress in [0, 1].

    Returns:
        Counts, below the length. (B,)
    """
    if step >= num_steps:
        return torch.zeros_like(lengths)
    # The small term keeps e.g. 10 * (1 - 0.9) at 1 rather than at 0.999...
    return (lengths * schedule(step / num_steps) + 1e-6).long().clamp(max=lengths - 1)


def lowest(score: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` lowest scores of each row; equal scores go by position, so the choice never varies.

    Args:
        score: (B, L)
        count: (B,)

    Returns:
        True where a score is among the lowest. (B, L)
    """
    # Counting what comes before needs no sort: ONNX has no stable one.
    own, other = score.unsqueeze(-1), score.unsqueeze(-2)
    earlier = torch.ones(score.shape[-1], score.shape[-1], dtype=torch.bool, device=score.device).tril(-1)
    rank = ((other < own) | ((other == own) & earlier)).sum(-1)
    return rank < count.unsqueeze(-1)


def sample_mask(lengths: Tensor, max_length: int, full_share: float, random: RandomSource) -> Tensor:
    """Choose training masks: k of L tokens with k uniform in 1..L (CMLM, arXiv 1904.09324), some captions whole.

    Args:
        lengths: Content tokens. (B,)
        max_length: Positions L of the padded batch.
        full_share: Share of captions masked whole, as refinement's first step sees them.
        random: Source of random numbers; the masks do not depend on the device.

    Returns:
        True where a token is to be hidden; at least one a caption, never padding. (B, L)
    """
    device, lengths = lengths.device, lengths.cpu()
    draw = uniform(random, lengths.shape[0], max_length + 2)
    count = (draw[:, 0] * lengths).long() + 1
    count = torch.where(draw[:, 1] < full_share, lengths, count)
    padding = torch.arange(max_length) >= lengths.unsqueeze(1)
    return lowest(draw[:, 2:].masked_fill(padding, 2.0), count).to(device)
