from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.generation.dlag import top_lengths
from fastcap.generation.icmr import ICMRDecoder
from fastcap.generation.ngrams import NGrams
from fastcap.types import Guidance, SpecialTokens

SPECIAL = SpecialTokens(pad=0, mask=1, unk=2, bos=3, eos=4)
MAX_LENGTH, VOCAB = 12, 25


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = MoEDecoder(VOCAB, MAX_LENGTH, pad_id=0, dim=16, num_layers=2, num_experts=3, top_k=2)
    # Sharper than at initialisation, so that confidences differ; special tokens are the likeliest if not banned.
    torch.nn.init.normal_(decoder.word.weight, std=1.0)
    with torch.no_grad():
        decoder.head_bias[:5] = 10.0
    return decoder.double().eval()


@pytest.fixture
def memory():
    return torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(1)).double()


def length_logits(*lengths):
    logits = torch.zeros(len(lengths), MAX_LENGTH, dtype=torch.float64)
    for row, length in enumerate(lengths):
        logits[row, length - 1] = 10.0
        logits[row, length % MAX_LENGTH] = 5.0
    return logits


LENGTHS = (1, 4, 7, 12, 9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 15])
@pytest.mark.parametrize("length_beam", [1, 3])
def test_no_special_token_ever_comes_out(decoder, memory, schedule, num_steps, length_beam):
    icmr = ICMRDecoder(SPECIAL, num_steps, schedule, length_beam)
    result = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True)
    inside = torch.arange(result.tokens.shape[1]) < result.lengths[:, None]
    assert not torch.isin(result.tokens[inside], torch.tensor(SPECIAL.ids)).any()
    assert (result.tokens[~inside] == SPECIAL.pad).all()
    assert 1 <= len(result.steps) <= num_steps
    if length_beam == 1:
        assert result.lengths.tolist() == list(LENGTHS)


def test_one_step_is_one_argmax_pass(decoder, memory):
    icmr = ICMRDecoder(SPECIAL, 1, length_beam=1)
    result = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True)
    pad = torch.arange(MAX_LENGTH) >= torch.tensor(LENGTHS)[:, None]
    logits = decoder(torch.full(pad.shape, SPECIAL.mask).masked_fill(pad, SPECIAL.pad), memory, pad).logits
    logits[..., list(SPECIAL.ids)] = -torch.inf
    value, index = logits.log_softmax(-1).max(-1)
    assert torch.equal(result.tokens, index.masked_fill(pad, SPECIAL.pad))
    assert len(result.steps) == 1
    torch.testing.assert_close(result.scores, value.masked_fill(pad, 0).sum(1) / (~pad).sum(1))


@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.parametrize("length_beam", [1, 3])
def test_a_caption_does_not_depend_on_its_batch(decoder, memory, num_steps, length_beam):
    icmr = ICMRDecoder(SPECIAL, num_steps, length_beam=length_beam)
    logits = length_logits(*LENGTHS)
    together = icmr.generate(decoder, memory, logits)
    for i in range(5):
        alone = icmr.generate(decoder, memory[i : i + 1], logits[i : i + 1])
        length = int(alone.lengths)
        assert length == int(together.lengths[i])
        assert torch.equal(alone.tokens[0, :length], together.tokens[i, :length])
        torch.testing.assert_close(alone.scores[0], together.scores[i])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_tokens_that_are_not_masked_again_stay(decoder, memory, schedule):
    icmr = ICMRDecoder(SPECIAL, 5, schedule, length_beam=1)
    steps = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True).steps
    assert len(steps) == 5
    for before, after in pairwise(steps):
        frozen = ~before.remasked
        assert torch.equal(before.tokens[frozen], after.tokens[frozen])
        assert torch.equal(before.confidence[frozen], after.confidence[frozen])
    assert not steps[-1].remasked.any()
    assert any(step.remasked.any() for step in steps)


def test_the_least_confident_are_masked_again(decoder, memory):
    icmr = ICMRDecoder(SPECIAL, 3, length_beam=1)
    for step in icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True).steps[:-1]:
        for row, length in enumerate(LENGTHS):
            again, confidence = step.remasked[row, :length], step.confidence[row, :length]
            if again.any() and not again.all():
                assert confidence[again].max() <= confidence[~again].min()


def test_the_best_candidate_wins(decoder, memory):
    logits = length_logits(*LENGTHS)
    best = ICMRDecoder(SPECIAL, 3, length_beam=4).generate(decoder, memory, logits)
    single = []
    for length in top_lengths(logits, 4).T:
        only = length_logits(*length.tolist())
        single.append(ICMRDecoder(SPECIAL, 3, length_beam=1).generate(decoder, memory, only).scores)
    torch.testing.assert_close(best.scores, torch.stack(single).max(0).values)


def test_repeats_are_collapsed_and_nothing_else(decoder, memory):
    plain = ICMRDecoder(SPECIAL, 1).generate(decoder, memory, length_logits(*LENGTHS))
    icmr = ICMRDecoder(SPECIAL, 1, collapse_repeats=True)
    result = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True)
    rows = [row[:length] for row, length in zip(plain.tokens.tolist(), plain.lengths.tolist(), strict=True)]
    expected = [[token for at, token in enumerate(row) if at == 0 or token != row[at - 1]] for row in rows]
    assert any(len(row) < len(drafted) for row, drafted in zip(expected, rows, strict=True))
    for row, tokens, length in zip(expected, result.tokens.tolist(), result.lengths.tolist(), strict=True):
        assert tokens[:length] == row and set(tokens[length:]) <= {SPECIAL.pad}
    assert torch.equal(result.drafted_lengths, plain.lengths) and torch.equal(result.scores, plain.scores)
    assert torch.equal(result.steps[-1].tokens, plain.tokens)


class TwoWays:
    """Every image is of one dog or of two: a decoder that has words alone mixes the captions."""

    A, TWO, DOG, DOGS = 5, 6, 7, 8

    def prepare(self, memory):
        return None

    def denoise(self, tokens, pad, cache):
        logits = torch.full((*tokens.shape, 9), -20.0)
        logits[:, 0, [self.A, self.TWO]] = torch.tensor([1.1, 1.0])
        if tokens.shape[1] > 1:
            logits[:, 1, [self.DOG, self.DOGS]] = torch.tensor([1.0, 1.3])
        return logits


A, TWO, DOG, DOGS = TwoWays.A, TwoWays.TWO, TwoWays.DOG, TwoWays.DOGS


def counts(*captions):
    ngrams = NGrams(9)
    ngrams.count(captions)
    return ngrams


def caption(icmr, ngrams, scores, guidance=None):
    """Caption one image of any dogs, given the scores of the lengths one and two."""
    result = icmr.generate(TwoWays(), torch.zeros(1, 1, 1), torch.tensor([scores]), ngrams, guidance)
    return result.tokens[0, : int(result.lengths)].tolist()


def test_neighbours_are_chosen_together():
    pairs = counts(*50 * [[A, DOG], [TWO, DOGS]])
    for steps in (1, 2):
        apart, together = (ICMRDecoder(SPECIAL, steps, length_beam=1, ngram_weights={"bigram": w}) for w in (0.0, 0.3))
        assert caption(apart, pairs, [0.0, 9.0]) == [A, DOGS]
        assert caption(together, pairs, [0.0, 9.0]) == [TWO, DOGS]
        assert caption(together, NGrams(9), [0.0, 9.0]) == [A, DOGS], "without counts, words are chosen as before"


def test_candidates_are_ranked_by_their_neighbours_too():
    scores, one_word = [0.0, 0.1], counts(*50 * [[A]], [DOG, DOGS])  # of both lengths the longer one is likelier
    assert caption(ICMRDecoder(SPECIAL, 1, length_beam=2), one_word, scores) == [A, DOGS]
    icmr = ICMRDecoder(SPECIAL, 1, length_beam=2, ngram_weights={"bigram": 2.0})
    assert caption(icmr, one_word, scores) == [A]
    # What the image's people write together chooses among lengths as well.
    guided = ICMRDecoder(SPECIAL, 1, length_beam=2, ngram_weights={"bigram": 2.0}, guidance={"bigram_bias": 50.0})
    phrases = torch.tensor([DOG * 9 + DOGS])
    guidance = Guidance(torch.tensor([[0.0, 1.0]]), torch.zeros(9, dtype=torch.long), phrases, *torch.zeros(2, 2))
    assert caption(guided, one_word, [0.0, 0.0], guidance) == [DOG, DOGS]


def test_three_words_in_a_row_are_chosen_together():
    # Both pairs are as common, but one of them never ends a caption.
    three = counts(*50 * [[TWO, DOGS], [A, DOGS, DOG]])
    for weight, expected in ((0.0, [A, DOGS]), (1.0, [TWO, DOGS])):
        icmr = ICMRDecoder(SPECIAL, 1, length_beam=1, ngram_weights={"trigram": weight})
        assert caption(icmr, three, [0.0, 9.0]) == expected


def test_what_is_weighed_must_be_there(decoder, memory):
    for options, message in (
        ({"ngram_weights": {"bigram": 1.0}}, "need a table of n-grams"),
        ({"guidance": {"word_bias": 2.0}}, r"word_bias = 2\.0 needs the image's concepts"),
        ({"guidance": {"bigram_bias": 2.0}}, r"bigram_bias = 2\.0 needs the image's concepts"),
        ({"guidance": {"rerank_weight": 2.0}}, r"rerank_weight = 2\.0 needs the image's concepts"),
        ({"num_paths": 2}, r"num_paths = 2 needs a weight of n-grams"),
    ):
        with pytest.raises(ValueError, match=message):
            ICMRDecoder(SPECIAL, **options).generate(decoder, memory, length_logits(*LENGTHS))


def test_numbers_are_arguments_of_a_call(decoder, memory):
    logits, icmr = length_logits(*LENGTHS), ICMRDecoder(SPECIAL, 4, length_beam=3)
    asked = icmr.generate(decoder, memory, logits, num_steps=2, length_beam=1, record_steps=True)
    expected = ICMRDecoder(SPECIAL, 2, length_beam=1).generate(decoder, memory, logits)
    assert torch.equal(asked.tokens, expected.tokens) and len(asked.steps) == 2
    assert (icmr.num_steps, icmr.length_beam) == (4, 3)
    for name in ("num_steps", "length_beam"):
        for wrong in (0, True, 1.5):
            with pytest.raises(ValueError, match=f"{name} = {wrong!r} must be a whole number"):
                icmr.generate(decoder, memory, logits, **{name: wrong})


LATTICE = {"ngram_weights": {"bigram": 0.5, "trigram": 0.5}}


@pytest.mark.parametrize("options", [{}, LATTICE, {**LATTICE, "num_paths": 3}], ids=["apart", "lattice", "paths"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_captions_are_the_same_at_a_fixed_length(decoder, memory, num_steps, options, monkeypatch):
    """What an export traces: a lattice as long as the longest caption that may be, and no step left out."""
    ngrams = NGrams(VOCAB)
    ngrams.count(torch.randint(5, VOCAB, (300, 8), generator=torch.Generator().manual_seed(3)).tolist())
    icmr, logits = ICMRDecoder(SPECIAL, num_steps, collapse_repeats=True, **options), length_logits(1, 4, 7, 2, 5)
    trimmed = icmr.generate(decoder, memory, logits, ngrams, record_steps=True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    fixed = icmr.generate(decoder, memory, logits, ngrams, record_steps=True)
    width = trimmed.tokens.shape[1]
    assert width < MAX_LENGTH
    assert torch.equal(fixed.tokens, trimmed.tokens)
    assert torch.equal(fixed.lengths, trimmed.lengths)
    torch.testing.assert_close(fixed.scores, trimmed.scores)
    for one, other in zip(fixed.steps, trimmed.steps, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.remasked, other.remasked)


def assert_sampled_alike(guided, plain, decoder, memory):
    """Rewards are for the decoder's own words: guidance has no part in sampling."""
    drawn = []
    for generator in (guided, plain):
        torch.manual_seed(1)
        drawn.append(generator.sample(decoder, memory, length_logits(*LENGTHS), 3).tokens.tolist())
    assert drawn[0] == drawn[1]


def test_likely_concepts_raise_their_words(decoder, memory):
    table = torch.zeros(len(LENGTHS), VOCAB, dtype=torch.float64)
    table[torch.arange(len(LENGTHS)), 5 + torch.arange(len(LENGTHS))] = 1.0
    guidance = Guidance(table, torch.arange(VOCAB), torch.zeros(0, dtype=torch.long), *torch.zeros(2, VOCAB))
    logits = length_logits(*LENGTHS)
    heavy = ICMRDecoder(SPECIAL, 1, length_beam=1, guidance={"word_bias": 1e4})
    found = heavy.generate(decoder, memory, logits, guidance=guidance)
    for image, length in enumerate(found.lengths.tolist()):
        assert found.tokens[image, :length].tolist() == [5 + image] * length
    assert_sampled_alike(heavy, ICMRDecoder(SPECIAL, 1, length_beam=1), decoder, memory)


def test_phrases_of_the_image_tie_its_words_together(decoder, memory):
    logits = length_logits(*LENGTHS)
    images = len(LENGTHS)

    # Image i's people write nothing but word 5 + i after itself or another word.
    before, after = torch.meshgrid(torch.arange(VOCAB), 5 + torch.arange(images), indexing="ij")
    own = F.pad((after.flatten() == 5 + torch.arange(images).unsqueeze(1)).double(), (1, 0))
    phrases, rest = (before * VOCAB + after).flatten(), torch.zeros(2, own.shape[1])
    guidance = Guidance(own, torch.zeros(VOCAB, dtype=torch.long), phrases, *rest)
    options, ngrams = {"num_steps": 1, "length_beam": 2, "lattice_width": VOCAB}, NGrams(VOCAB)
    heavy = ICMRDecoder(SPECIAL, guidance={"bigram_bias": 1e4}, **options)
    found = heavy.generate(decoder, memory, logits, ngrams, guidance)
    for image, length in enumerate(found.lengths.tolist()):
        assert set(found.tokens[image, 1:length].tolist()) <= {5 + image}  # nothing decides the first word
    assert_sampled_alike(heavy, ICMRDecoder(SPECIAL, **options), decoder, memory)
