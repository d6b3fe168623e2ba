"""Iterative Conditional Masked Refinement: draft a caption whole, then mend its least certain words."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcap.generation.chain import Links
from fastcap.generation.choose import Choose, Draft, Together, at_random, likeliest
from fastcap.generation.dlag import top_lengths
from fastcap.generation.rerank import Weights, check_weight, rank
from fastcap.generation.schedule import SCHEDULES, lowest, num_to_remask
from fastcap.types import Denoiser, Judges, Refinement, Sampled, SpecialTokens, StepTensors


class ICMRDecoder:
    """Mask-Predict (Ghazvininejad et al. 2019, arXiv 1904.09324) around any ``Denoiser``. It owns no weights.

    Every sample keeps its own length, so a caption does not depend on what shares its batch. Special tokens are never
    written. A token keeps the confidence it was written with until it is masked again.

    Args:
        special: The special token ids.
        num_steps: Decoder passes T.
        schedule: How many tokens are masked again after each step: ``linear`` or ``cosine``.
        num_lengths: Length candidates an image, refined as one batch; the best mean log-probability wins.
        bigram_weight: Weight of what neighbours are worth together, as the decoder has counted them (its ``bigrams``):
            the words of a step are then chosen together, and candidates judged by it too. Zero chooses each by itself.
        num_choices: Words considered at each position where they are chosen together.
        naming_weight: Weight of the concepts that a candidate is expected to name rightly, less ``naming_cost`` a word,
            added to its mean log-probability.
        naming_cost: What each word costs, in rightly named concepts.
        concept_weight: What a word's score gains while words are chosen, times the probability that the image's people
            name its concept.
        phrase_weight: What neighbouring words gain together, times the probability that the image's people write the
            two together; words are then chosen together, and candidates judged by it too.
        trigram_weight: Weight of what three words in a row are worth beyond their pairs, as the decoder has counted
            them (its ``trigrams``); likewise.
        collapse_repeats: In the end write a token that follows itself once (Lee et al. 2018, arXiv 1802.06901): the
            typical fault of words chosen in parallel.

    Raises:
        ValueError: If num_steps, num_lengths or num_choices is below one, the schedule is unknown or a weight negative.
    """

    causal = False

    def __init__(
        self,
        special: SpecialTokens,
        num_steps: int = 4,
        schedule: str = "linear",
        num_lengths: int = 3,
        collapse_repeats: bool = False,
        bigram_weight: float = 0.0,
        num_choices: int = 4,
        naming_weight: float = 0.0,
        naming_cost: float = 0.4,
        concept_weight: float = 0.0,
        phrase_weight: float = 0.0,
        trigram_weight: float = 0.0,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("num_lengths", num_lengths), ("num_choices", num_choices)):
            if value < 1:
                raise ValueError(f"refinement.{name} = {value} must be at least 1")
        if schedule not in SCHEDULES:
            raise ValueError(f"refinement.schedule = {schedule!r} must be one of {', '.join(SCHEDULES)}")
        self.special = special
        self.num_steps = num_steps
        self.schedule = SCHEDULES[schedule]
        self.num_lengths = num_lengths
        self.collapse_repeats = collapse_repeats
        self.rank_weights = Weights(naming_weight, naming_cost)
        self.bigram_weight = check_weight("bigram_weight", bigram_weight)
        self.num_choices = num_choices
        self.concept_weight = check_weight("concept_weight", concept_weight)
        self.phrase_weight = check_weight("phrase_weight", phrase_weight)
        self.trigram_weight = check_weight("trigram_weight", trigram_weight)

    @torch.no_grad()
    def generate(
        self,
        denoiser: Denoiser,
        memory: Tensor,
        length_logits: Tensor,
        record_steps: bool = False,
        judges: Judges | None = None,
    ) -> Refinement:
        """Caption a batch of images.

        Args:
            denoiser: The trained decoder.
            memory: Image memory. (B, N, D)
            length_logits: Scores of the lengths 1..max_length. (B, max_length)
            record_steps: Keep every step of the chosen candidates.
            judges: What the images have to say, each asked where its weight is above zero: how many concepts each
                candidate is expected to name rightly (``naming_weight``), which
                words' concepts are likely (``concept_weight``) and which neighbours (``phrase_weight``).

        Returns:
            The best candidate of each image.

        Raises:
            ValueError: If something is to be weighed and there is no judge of it.
        """
        # 1. The likeliest lengths, K an image, in consecutive rows.
        candidates = top_lengths(length_logits, self.num_lengths)
        lengths = candidates.flatten()
        cache = denoiser.prepare(memory)
        judges = judges or Judges()
        shape = candidates.shape
        gain, choose = self._gain(judges, shape[1]), self._choose(self._links(denoiser, judges), temperature=None)
        refined = self._refine(denoiser, cache, lengths, choose, record_steps, gain)
        tokens, confidence, together, steps, num_passes = refined

        # 5. The candidate whose words are likeliest on average, go together and name what is there.
        scores, drafted = confidence.sum(1) / lengths, lengths
        total = scores if together is None else scores + together / lengths
        tokens, lengths = self._collapse(tokens) if self.collapse_repeats else (tokens, lengths)
        finished = total.view(shape), tokens.view(*shape, -1), lengths.view(shape)
        best = rank(*finished, self.rank_weights, judges)
        best = best + torch.arange(shape[0], device=memory.device) * shape[1]
        chosen = [StepTensors(s.tokens[best], s.confidence[best], s.remasked[best]) for s in steps]
        experts = getattr(cache, "expert_weights", None)
        return Refinement(tokens[best], lengths[best], scores[best], num_passes, drafted[best], chosen, experts)

    def sample(
        self,
        denoiser: Denoiser,
        memory: Tensor,
        length_logits: Tensor,
        num_samples: int,
        temperature: float = 1.0,
    ) -> Sampled:
        """Draw captions by the same refinement, for training on rewards: lengths and words by chance, all else alike.

        Likely concepts and phrases gain nothing here: rewarded beside them, the decoder comes to leave to them what it
        should say itself (experiments/018-naming). Triples of words gain nothing either: to look up those of thousands
        of samples would take as long as the decoder.

        Chance comes from torch's global generator.

        Args:
            denoiser: The decoder in training.
            memory: Image memory. (B, N, D)
            length_logits: Scores of the lengths 1..max_length. (B, max_length)
            num_samples: Captions an image.
            temperature: Of the words' distribution.

        Returns:
            Captions, with gradients in the log-probability of each word at the step it was last written and in that of
            the length. (B * num_samples, L)
        """
        distribution = length_logits.float().log_softmax(-1)
        drawn = torch.multinomial(distribution.exp(), num_samples, replacement=True)
        lengths = drawn.flatten() + 1
        links = Links(denoiser.bigrams, self.bigram_weight) if self.bigram_weight > 0 else None
        draw = self._choose(links, temperature)
        tokens, confidence, *_ = self._refine(denoiser, denoiser.prepare(memory), lengths, draw, False)
        words = tokens != self.special.pad
        if self.collapse_repeats:
            shown, shown_lengths = self._collapse(tokens)
        else:
            shown, shown_lengths = tokens, lengths
        return Sampled(shown, shown_lengths, confidence, words, distribution.gather(1, drawn).flatten())

    def _links(self, denoiser: Denoiser, judges: Judges) -> Links | None:
        """What neighbours gain by being neighbours; None where nothing of it is weighed."""
        if self.bigram_weight == self.phrase_weight == self.trigram_weight == 0:
            return None
        phrases = judges.phrases if self.phrase_weight > 0 else None
        if self.phrase_weight > 0 and phrases is None:
            raise ValueError(f"refinement.phrase_weight = {self.phrase_weight} needs the image's phrases")
        trigrams = denoiser.trigrams if self.trigram_weight > 0 else None
        pairs = denoiser.bigrams, self.bigram_weight, phrases, self.phrase_weight
        return Links(*pairs, trigrams, self.trigram_weight)

    def _choose(self, links: Links | None, temperature: float | None) -> Choose:
        """How the words of a step are chosen; without a temperature the best, else drawn at it."""
        if links is not None:
            return Together(links, self.num_choices, temperature)
        return likeliest if temperature is None else partial(at_random, temperature=temperature)

    def _gain(self, judges: Judges, num_candidates: int) -> Tensor | None:
        """What the words' scores gain from the concepts of each candidate's image, (B * K, 1, V), or None."""
        if self.concept_weight == 0:
            return None
        if judges.likely is None:
            raise ValueError(f"refinement.concept_weight = {self.concept_weight} needs the image's concepts")
        return self.concept_weight * judges.likely().repeat_interleave(num_candidates, dim=0).unsqueeze(1)

    def _refine(
        self,
        denoiser: Denoiser,
        cache: Any,
        lengths: Tensor,
        choose: Choose,
        record_steps: bool,
        gain: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, list[StepTensors], int]:
        """Refine captions of given lengths.

        Returns:
            Tokens, their choices' log-probabilities, what captions are worth together beyond them, steps and passes.
        """
        # 2. Start from nothing but [MASK].
        shortest, longest = torch.stack(lengths.aminmax()).tolist()
        pad = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
        tokens = torch.full_like(pad, self.special.mask, dtype=torch.long).masked_fill(pad, self.special.pad)
        steps, num_passes = [], 0

        for step in range(1, self.num_steps + 1):
            # 3. Predict all, write where masked.
            logits = denoiser.denoise(tokens, pad if shortest < longest else None, cache)
            logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
            if gain is not None:
                logits = logits + gain.to(logits.dtype)
            logits[..., list(self.special.ids)] = -torch.inf
            masked = tokens == self.special.mask
            written, certainty, chance, together = choose(logits, Draft(tokens, masked, pad))
            num_passes += 1
            tokens = torch.where(masked, written, tokens)
            if step == 1:
                confidence, decision = (torch.zeros_like(value) for value in (certainty, chance))
            confidence = torch.where(masked, certainty.detach(), confidence)
            decision = torch.where(masked, chance, decision)
            # 4. Mask the least certain again; none after the last step.
            count = num_to_remask(lengths, step, self.num_steps, self.schedule)
            done = not bool(count.any())
            remasked = torch.zeros_like(pad) if done else lowest(confidence.masked_fill(pad, torch.inf), count)
            if record_steps:
                steps.append(StepTensors(tokens, confidence.exp().masked_fill(pad, 0.0), remasked))
            if done:
                break
            tokens = tokens.masked_fill(remasked, self.special.mask)
        return tokens, decision, together, steps, num_passes

    def _collapse(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out tokens that equal the one before; returns tokens (B, L) and lengths (B,)."""
        before = F.pad(tokens, (1, 0), value=self.special.pad)[:, :-1]
        kept = (tokens != before) & (tokens != self.special.pad)
        order = kept.logical_not().sort(dim=1, stable=True).indices
        lengths = kept.sum(1)
        beyond = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        return tokens.gather(1, order).masked_fill(beyond, self.special.pad), lengths
