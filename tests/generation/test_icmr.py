from itertools import pairwise

import pytest
import torch

from fastcap.decoder.bigrams import Bigrams
from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.decoder.trigrams import Trigrams
from fastcap.generation.dlag import DynamicLengthPredictor, top_lengths
from fastcap.generation.icmr import ICMRDecoder
from fastcap.types import Judges, SpecialTokens

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
@pytest.mark.parametrize("num_lengths", [1, 3])
def test_no_special_token_ever_comes_out(decoder, memory, schedule, num_steps, num_lengths):
    icmr = ICMRDecoder(SPECIAL, num_steps, schedule, num_lengths)
    result = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True)
    inside = torch.arange(result.tokens.shape[1]) < result.lengths[:, None]
    assert not torch.isin(result.tokens[inside], torch.tensor(SPECIAL.ids)).any()
    assert (result.tokens[~inside] == SPECIAL.pad).all()
    assert 1 <= result.num_passes <= num_steps
    if num_lengths == 1:
        assert result.lengths.tolist() == list(LENGTHS)


def test_one_step_is_one_argmax_pass(decoder, memory):
    result = ICMRDecoder(SPECIAL, 1, num_lengths=1).generate(decoder, memory, length_logits(*LENGTHS))
    pad = torch.arange(MAX_LENGTH) >= torch.tensor(LENGTHS)[:, None]
    logits = decoder(torch.full(pad.shape, SPECIAL.mask).masked_fill(pad, SPECIAL.pad), memory, pad).logits
    logits[..., list(SPECIAL.ids)] = -torch.inf
    value, index = logits.log_softmax(-1).max(-1)
    assert torch.equal(result.tokens, index.masked_fill(pad, SPECIAL.pad))
    assert result.num_passes == 1
    torch.testing.assert_close(result.scores, value.masked_fill(pad, 0).sum(1) / (~pad).sum(1))


@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.parametrize("num_lengths", [1, 3])
def test_a_caption_does_not_depend_on_its_batch(decoder, memory, num_steps, num_lengths):
    icmr = ICMRDecoder(SPECIAL, num_steps, num_lengths=num_lengths)
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
    icmr = ICMRDecoder(SPECIAL, 5, schedule, num_lengths=1)
    steps = icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True).steps
    assert len(steps) == 5
    for before, after in pairwise(steps):
        frozen = ~before.remasked
        assert torch.equal(before.tokens[frozen], after.tokens[frozen])
        assert torch.equal(before.confidence[frozen], after.confidence[frozen])
    assert not steps[-1].remasked.any()
    assert any(step.remasked.any() for step in steps)


def test_the_least_confident_are_masked_again(decoder, memory):
    icmr = ICMRDecoder(SPECIAL, 3, num_lengths=1)
    for step in icmr.generate(decoder, memory, length_logits(*LENGTHS), record_steps=True).steps[:-1]:
        for row, length in enumerate(LENGTHS):
            again, confidence = step.remasked[row, :length], step.confidence[row, :length]
            if again.any() and not again.all():
                assert confidence[again].max() <= confidence[~again].min()


def test_same_input_same_bits(decoder, memory):
    icmr = ICMRDecoder(SPECIAL, 4)
    first, second = (icmr.generate(decoder, memory, length_logits(*LENGTHS)) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.scores, second.scores)


def test_the_best_candidate_wins(decoder, memory):
    logits = length_logits(*LENGTHS)
    best = ICMRDecoder(SPECIAL, 3, num_lengths=4).generate(decoder, memory, logits)
    single = []
    for length in top_lengths(logits, 4).T:
        only = length_logits(*length.tolist())
        single.append(ICMRDecoder(SPECIAL, 3, num_lengths=1).generate(decoder, memory, only).scores)
    torch.testing.assert_close(best.scores, torch.stack(single).max(0).values)


def test_it_owns_no_weights():
    assert not isinstance(ICMRDecoder(SPECIAL), torch.nn.Module)
    assert not any(isinstance(value, torch.Tensor) for value in vars(ICMRDecoder(SPECIAL)).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_lengths": 0}, "num_lengths"),
        ({"schedule": "sine"}, "linear, cosine"),
        ({"naming_weight": -1}, "naming_weight"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ICMRDecoder(SPECIAL, **arguments)


def test_length_predictor_learns_and_ranks():
    torch.manual_seed(0)
    predictor = DynamicLengthPredictor(16, MAX_LENGTH, dropout=0.0)
    memory = torch.randn(8, 7, 16)
    target = torch.arange(8) % 4 + 3
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(predictor(memory), target - 1).backward()
        optimizer.step()
    assert torch.equal(top_lengths(predictor(memory), 1)[:, 0], target)
    assert top_lengths(predictor(memory), 99).shape == (8, MAX_LENGTH)


def test_repeats_are_collapsed_and_nothing_else(decoder, memory):
    plain = ICMRDecoder(SPECIAL, 1).generate(decoder, memory, length_logits(*LENGTHS))
    result = ICMRDecoder(SPECIAL, 1, collapse_repeats=True).generate(decoder, memory, length_logits(*LENGTHS), True)
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

    def __init__(self, counted=True):
        self.bigrams = Bigrams(9)
        if counted:
            self.bigrams.count(50 * [[self.A, self.DOG], [self.TWO, self.DOGS]])

    def prepare(self, memory):
        return None

    def denoise(self, tokens, pad, cache):
        logits = torch.full((*tokens.shape, 9), -20.0)
        logits[:, 0, [self.A, self.TWO]] = torch.tensor([1.1, 1.0])
        logits[:, 1, [self.DOG, self.DOGS]] = torch.tensor([1.0, 1.3])
        return logits


class OneWord(TwoWays):
    """One word is what people write of everything."""

    def __init__(self):
        super().__init__()
        self.bigrams.count(50 * [[self.A]] + [[self.DOG, self.DOGS]])


def test_neighbours_are_chosen_together():
    length = torch.zeros(3, 2)
    length[:, 1] = 9.0
    for steps in (1, 2):
        apart, together = (ICMRDecoder(SPECIAL, steps, num_lengths=1, bigram_weight=w) for w in (0.0, 0.3))
        mixed = [TwoWays.A, TwoWays.DOGS]
        assert apart.generate(TwoWays(), torch.zeros(3, 1, 1), length).tokens.tolist() == [mixed] * 3
        found = together.generate(TwoWays(), torch.zeros(3, 1, 1), length)
        assert found.tokens.tolist() == [[TwoWays.TWO, TwoWays.DOGS]] * 3
        # Without counts, words are chosen as before.
        assert together.generate(TwoWays(counted=False), torch.zeros(3, 1, 1), length).tokens.tolist() == [mixed] * 3


def test_candidates_are_judged_by_their_neighbours_too():
    scores = torch.tensor([[0.0, 0.1]])  # of both lengths, the longer one likelier
    decoder = ICMRDecoder(SPECIAL, 1, num_lengths=2, bigram_weight=2.0)
    plain = ICMRDecoder(SPECIAL, 1, num_lengths=2).generate(OneWord(), torch.zeros(1, 1, 1), scores)
    assert plain.lengths.tolist() == [2]
    assert decoder.generate(OneWord(), torch.zeros(1, 1, 1), scores).lengths.tolist() == [1]


def test_three_words_in_a_row_are_chosen_together():
    decoder, length = TwoWays(), torch.tensor([[0.0, 9.0]])
    two, one = [decoder.TWO, decoder.DOGS], [decoder.A, decoder.DOGS]
    # Both pairs are as common, but one of them never ends a caption.
    captions = 50 * [two, [*one, decoder.DOG]]
    decoder.bigrams.count(captions)
    decoder.trigrams = Trigrams(9)
    decoder.trigrams.count(captions, decoder.bigrams)
    for weight, expected in ((0.0, one), (1.0, two)):
        icmr = ICMRDecoder(SPECIAL, 1, num_lengths=1, trigram_weight=weight)
        assert icmr.generate(decoder, torch.zeros(1, 1, 1), length).tokens.tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bigram_weight", -0.1),
        ("bigram_weight", float("nan")),
        ("num_choices", 0),
        ("phrase_weight", -1.0),
        ("trigram_weight", -1.0),
    ],
)
def test_bad_settings_of_neighbours_are_refused(name, value):
    with pytest.raises(ValueError, match=f"refinement.{name} = "):
        ICMRDecoder(SPECIAL, **{name: value})


def test_likely_concepts_raise_their_words(decoder, memory):
    table = torch.zeros(len(LENGTHS), VOCAB, dtype=torch.float64)
    table[torch.arange(len(LENGTHS)), 5 + torch.arange(len(LENGTHS))] = 1.0
    logits = length_logits(*LENGTHS)
    heavy = ICMRDecoder(SPECIAL, 1, num_lengths=1, concept_weight=1e4)
    found = heavy.generate(decoder, memory, logits, judges=Judges(likely=lambda: table))
    for image, length in enumerate(found.lengths.tolist()):
        assert found.tokens[image, :length].tolist() == [5 + image] * length
    torch.manual_seed(1)
    sampled = heavy.sample(decoder, memory, logits, 3)  # rewards are for the decoder's own words
    torch.manual_seed(1)
    assert (
        sampled.tokens.tolist()
        == ICMRDecoder(SPECIAL, 1, num_lengths=1).sample(decoder, memory, logits, 3).tokens.tolist()
    )
    plain = ICMRDecoder(SPECIAL, 1, num_lengths=1)
    light = ICMRDecoder(SPECIAL, 1, num_lengths=1, concept_weight=1e-9).generate(
        decoder, memory, logits, judges=Judges(likely=lambda: table)
    )
    assert light.tokens.tolist() == plain.generate(decoder, memory, logits).tokens.tolist()
    with pytest.raises(ValueError, match=r"concept_weight = 10000\.0 needs the image's concepts"):
        heavy.generate(decoder, memory, logits)


def test_phrases_of_the_image_tie_its_words_together(decoder, memory):
    logits = length_logits(*LENGTHS)
    images = len(LENGTHS)

    def own(before, after):  # image i's people write nothing but word 5 + i after itself or another word
        rows = torch.arange(len(before)) // (len(before) // images)
        return (after == (5 + rows).view(-1, *[1] * (before.dim() - 1))).double() * (before < VOCAB)

    options = {"num_steps": 1, "num_choices": VOCAB}
    heavy = ICMRDecoder(SPECIAL, num_lengths=2, phrase_weight=1e4, **options)
    found = heavy.generate(decoder, memory, logits, judges=Judges(phrases=own))
    for image, length in enumerate(found.lengths.tolist()):
        assert set(found.tokens[image, 1:length].tolist()) <= {5 + image}  # nothing decides the first word
    torch.manual_seed(1)
    sampled = heavy.sample(decoder, memory, logits, 3)  # rewards are for the decoder's own words
    torch.manual_seed(1)
    plain = ICMRDecoder(SPECIAL, num_lengths=2, **options)
    assert sampled.tokens.tolist() == plain.sample(decoder, memory, logits, 3).tokens.tolist()
    light = ICMRDecoder(SPECIAL, num_lengths=2, phrase_weight=1e-9, **options)
    expected = plain.generate(decoder, memory, logits).tokens.tolist()
    assert light.generate(decoder, memory, logits, judges=Judges(phrases=own)).tokens.tolist() == expected
    with pytest.raises(ValueError, match=r"phrase_weight = 10000\.0 needs the image's phrases"):
        heavy.generate(decoder, memory, logits)


def test_phrases_choose_among_lengths():
    scores, memory = torch.zeros(1, 2), torch.zeros(1, 1, 1)
    options = {"num_lengths": 2, "bigram_weight": 2.0}
    assert ICMRDecoder(SPECIAL, 1, **options).generate(OneWord(), memory, scores).lengths.tolist() == [1]
    judges = Judges(phrases=lambda before, after: ((before == TwoWays.DOG) & (after == TwoWays.DOGS)).double())
    found = ICMRDecoder(SPECIAL, 1, **options, phrase_weight=50.0).generate(OneWord(), memory, scores, judges=judges)
    assert found.tokens.tolist() == [[TwoWays.DOG, TwoWays.DOGS]]
