"""Refinement in numpy is ICMR: same drafts, same captions."""

import itertools

import numpy as np
import pytest
import torch

from fastcap.alignment.cmfa import CrossModalFeatureAlignment, summary
from fastcap.data.tokenizer import CaptionTokenizer
from fastcap.decoder.bigrams import Bigrams
from fastcap.decoder.trigrams import Trigrams
from fastcap.generation.icmr import ICMRDecoder
from fastcap.serving.chain import BigramTable, Links
from fastcap.serving.refine import RefinementSettings, expected_names, join, refine
from fastcap.types import Judges

SPECIAL = CaptionTokenizer.special
WORDS, LONGEST = 12, 9


class Scorer:
    """A denoiser whose scores depend on image, position, draft and length."""

    def __init__(self, num_images, seed):
        draw = torch.Generator().manual_seed(seed)
        self.image = torch.randn(num_images, 1, LONGEST, WORDS, generator=draw)
        self.word = torch.randn(WORDS, WORDS, generator=draw)
        self.bigrams = Bigrams(WORDS)
        captions = torch.randint(5, WORDS, (40, 6), generator=draw).tolist()
        self.bigrams.count(captions)
        self.trigrams = Trigrams(WORDS)
        self.trigrams.count(captions, self.bigrams)
        pairs = sorted({(a, b) for a, b in torch.randint(5, WORDS, (20, 2), generator=draw).tolist()})
        self.alignment = CrossModalFeatureAlignment(
            6, 8, [-1] * 5 + [0] * (WORDS - 5), phrases=pairs, phrase_weights=[1.0] * len(pairs)
        )
        self.named = torch.rand(num_images, 2 + len(pairs), generator=draw)
        self.named[:, 0] = 0.0  # of words without a concept

    def table(self):
        tables = self.bigrams.pairs, self.bigrams.worth, self.bigrams.unseen, self.alignment.phrases
        three = self.trigrams
        tables += three.triples, three.worth, three.contexts, three.unseen
        return BigramTable(*(t.numpy() for t in tables))

    def phrases(self, before, after):
        return self.alignment.phrase_probability(self.named, before, after)

    def links(self, bigram_weight, phrase_weight, trigram_weight=0.0):
        return Links(self.table(), bigram_weight, phrase_weight, self.named[:, 2:].numpy(), trigram_weight)

    def prepare(self, memory):
        return memory.shape[0]

    def denoise(self, tokens, pad, cache):
        words = tokens.shape[1] if pad is None else (~pad).sum(1).view(-1, 1, 1)
        drafts = self.word[tokens].cumsum(1) + 0.3 * words
        rows = drafts.view(cache, -1, *drafts.shape[1:]) + self.image[:, :, : tokens.shape[1]]
        return rows.view_as(drafts)

    def predict(self, tokens, lengths):
        pad = np.arange(tokens.shape[2]) >= lengths[..., None]
        flat, pads = torch.tensor(tokens).flatten(0, 1), torch.tensor(pad).flatten(0, 1)
        logits = self.denoise(flat, pads, len(tokens))
        logits[..., list(SPECIAL.ids)] = -torch.inf
        value, index = logits.log_softmax(-1).topk(5)
        return index.view(*tokens.shape, -1).numpy(), value.view(*tokens.shape, -1).numpy()


class Scores:
    """A score that depends on image, words and length; remembers what it judged."""

    def __init__(self):
        self.word = torch.randn(5, 1, WORDS, generator=torch.Generator().manual_seed(3))
        self.judged = []

    def __call__(self, tokens, lengths):
        self.judged.append((tokens, lengths))
        inside = torch.arange(tokens.shape[2]) < torch.as_tensor(lengths)[..., None]
        words = self.word.expand(-1, tokens.shape[1], -1).gather(2, torch.as_tensor(tokens))
        return (words * inside).sum(2)

    def numpy(self, tokens, lengths):
        return self(tokens, lengths).numpy()


@pytest.mark.parametrize(
    ("together", "phrases", "three", "choices"),
    [
        (0.0, 0.0, 0.0, 4),
        (0.4, 0.0, 0.0, 1),
        (0.4, 0.0, 0.0, 3),
        (2.0, 0.0, 0.0, 4),
        (0.0, 1.5, 0.0, 3),
        (0.4, 0.5, 0.0, 4),
        (0.0, 0.0, 0.7, 3),
        (0.4, 0.5, 1.5, 4),
    ],
)
@pytest.mark.parametrize("naming", [0.0, 0.7])
@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("num_lengths", [1, 3])
def test_numpy_refines_as_icmr_does(
    num_steps, schedule, num_lengths, collapse, naming, together, phrases, three, choices
):
    scorer = Scorer(num_images=5, seed=num_steps)
    logits = torch.randn(5, LONGEST, generator=torch.Generator().manual_seed(num_lengths))
    options = num_steps, schedule, num_lengths, collapse, together, choices, naming, 0.3, 0.0, phrases, three
    names = Scores()
    asked = Judges(names, phrases=scorer.phrases)
    expected = ICMRDecoder(SPECIAL, *options).generate(scorer, torch.zeros(5, 1, 1), logits, True, asked)
    judges = scorer.links(together, phrases, three), names.numpy
    found = refine(scorer.predict, logits.numpy(), SPECIAL, RefinementSettings(*options), True, *judges)
    # Both have finished captions judged, and only where there is a choice.
    assert len(names.judged) == (2 if naming and num_lengths > 1 else 0)
    for one, other in zip(*names.judged, strict=True) if names.judged else ():
        np.testing.assert_array_equal(one, other)
    for name in ("tokens", "lengths", "drafted_lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name).numpy())
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), rtol=1e-5)
    assert len(found.drafts) == len(expected.steps)
    for draft, step in zip(found.drafts, expected.steps, strict=True):
        np.testing.assert_array_equal(draft.tokens, step.tokens.numpy())
        np.testing.assert_array_equal(draft.remasked, step.remasked.numpy())
        np.testing.assert_allclose(draft.confidence, step.confidence.numpy(), rtol=1e-5, atol=1e-7)


def test_parts_of_a_batch_join_in_order():
    scorer = Scorer(num_images=4, seed=1)
    logits = torch.randn(4, LONGEST, generator=torch.Generator().manual_seed(1)).numpy()
    settings = RefinementSettings(3)
    whole = refine(scorer.predict, logits, SPECIAL, settings, record_steps=True)
    parts = []
    images = scorer.image
    for rows in (np.array([0, 3]), np.array([1, 2])):
        scorer.image = images[rows]
        parts.append((rows, refine(scorer.predict, logits[rows], SPECIAL, settings, record_steps=True)))
    joined = join(parts, SPECIAL.pad)
    for row in range(4):
        length = joined.lengths[row]
        assert length == whole.lengths[row]
        assert joined.tokens[row, :length].tolist() == whole.tokens[row, :length].tolist()
        assert (joined.tokens[row, length:] == SPECIAL.pad).all()
        assert joined.scores[row] == pytest.approx(whole.scores[row])
        for one, other in zip(joined.drafts, whole.drafts, strict=True):
            assert one.remasked[row, :length].tolist() == other.remasked[row, :length].tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_steps": 0}, "num_steps = 0"),
        ({"num_steps": True}, "num_steps = True"),
        ({"num_lengths": 1.5}, r"num_lengths = 1\.5"),
        ({"bigram_weight": -0.1}, r"bigram_weight = -0\.1"),
        ({"bigram_weight": "much"}, "bigram_weight = 'much'"),
        ({"bigram_weight": True}, "bigram_weight = True"),
        ({"phrase_weight": float("nan")}, "phrase_weight = nan"),
        ({"num_choices": 0}, "num_choices = 0"),
        ({"schedule": "slow"}, "'slow' must be one of linear, cosine"),
        ({"collapse_repeats": 1}, "collapse_repeats = 1"),
        ({"num_beams": 3}, r"refinement\.num_beams: an exported model knows num_steps"),
    ],
)
def test_refused_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        RefinementSettings().changed(values)


def test_neighbours_that_are_to_be_weighed_must_be_there():
    scorer = Scorer(num_images=1, seed=0)
    for name in ("bigram_weight", "phrase_weight", "trigram_weight"):
        settings = RefinementSettings(**{name: 0.3})
        with pytest.raises(ValueError, match=rf"{name} = 0\.3 needs a table of neighbours"):
            refine(scorer.predict, np.zeros((1, LONGEST), np.float32), SPECIAL, settings)


def test_a_table_of_neighbours_is_written_and_read_whole(tmp_path):
    scorer = Scorer(num_images=1, seed=0)
    scorer.table().write(tmp_path / "bigrams.npz")
    table = BigramTable.read(tmp_path / "bigrams.npz")
    every = np.arange(WORDS + 1)
    expected = scorer.bigrams(*(torch.from_numpy(t) for t in np.broadcast_arrays(every[:, None], every)))
    np.testing.assert_array_equal(table(every[:, None], every), expected.numpy())
    three = every[:, None, None], every[:, None], every
    expected = scorer.trigrams(*(torch.from_numpy(t) for t in np.broadcast_arrays(*three)))
    np.testing.assert_array_equal(table.three(*three), expected.numpy())
    np.testing.assert_array_equal(table.phrases, scorer.alignment.phrases.numpy())
    assert table.counted and not BigramTable(table.pairs[:0], table.worth[:0], table.unseen).counted


TABLE = {
    "pairs": np.arange(3),
    "worth": np.zeros(3),
    "unseen": np.zeros(4),
    "phrases": np.arange(2),
    "triples": np.arange(5),
    "triple_worth": np.zeros(5),
    "contexts": np.arange(2),
    "context_unseen": np.zeros(2),
}


def test_arrays_of_a_table_are_one(tmp_path):
    np.savez(tmp_path / "bigrams.npz", **TABLE)
    assert BigramTable.read(tmp_path / "bigrams.npz").boundary == 3


@pytest.mark.parametrize(
    "arrays",
    [
        {name: value for name, value in TABLE.items() if name != "triples"},
        TABLE | {"worth": np.zeros(2)},
        TABLE | {"context_unseen": np.zeros(3)},
        TABLE | {"triple_worth": np.zeros((5, 1))},
        TABLE | {"phrases": np.zeros((2, 2), np.int64)},
        TABLE | {"pairs": np.array([{}]), "worth": np.zeros(1)},
        None,
    ],
)
def test_another_file_is_no_table(tmp_path, arrays):
    path = tmp_path / "bigrams.npz"
    if arrays is None:
        path.write_bytes(b"PK nothing")
    else:
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match="not a table of neighbours"):
        BigramTable.read(path)


@pytest.mark.parametrize("phrases", [[], [(5, 6), (6, 7), (7, 7), (10, 11), (11, 5)]])
def test_names_are_expected_as_in_torch(phrases):
    draw = torch.Generator().manual_seed(0)
    concepts = [-1] * 5 + [0, 1, 1, 2, -1, 3, 3]
    alignment = CrossModalFeatureAlignment(6, 8, concepts, phrases=phrases, phrase_weights=[1.0] * len(phrases))
    seen = summary(torch.randn(3, 4, 8, generator=draw))
    tokens, lengths = torch.randint(5, WORDS, (3, 2, 7), generator=draw), torch.tensor([[7, 3], [1, 5], [6, 6]])
    tokens[0, 0] = torch.tensor([5, 6, 7, 7, 7, 5, 6])
    with torch.no_grad():
        expected = alignment.naming(alignment.concept_probability(seen), tokens, lengths)
        probability = alignment.concept_logits(seen).sigmoid().numpy()
    empty = np.zeros(0, np.int64)
    table = BigramTable(empty, empty, np.zeros(WORDS + 1), alignment.phrases.numpy())
    found = expected_names(probability, np.array(concepts), table, tokens.numpy(), lengths.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    for image, row in np.ndindex(3, 2):  # each concept and phrase once, none twice, nothing beyond the end
        words = tokens[image, row, : lengths[image, row]].tolist()
        named = {concepts[word] for word in words} - {-1}
        named |= {4 + phrases.index(pair) for pair in itertools.pairwise(words) if pair in phrases}
        assert found[image, row] == pytest.approx(sum(probability[image, place] for place in named), rel=1e-5)
