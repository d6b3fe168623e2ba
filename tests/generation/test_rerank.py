"""The choice among candidates: words' probabilities, and the concepts they name."""

import pytest
import torch

from fastcap.decoder.autoregressive import AutoregressiveDecoder
from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.generation import crf
from fastcap.generation.beam import BeamSearch
from fastcap.generation.crf import RerankWeights, rerank
from fastcap.generation.icmr import ICMRDecoder
from fastcap.types import Guidance, SpecialTokens

SPECIAL = SpecialTokens(pad=0, mask=1, unk=2, bos=3, eos=4)
VOCAB, LONGEST = 25, 8
MEMORY = torch.randn(6, 7, 16, generator=torch.Generator().manual_seed(1))


NOTHING = Guidance(
    torch.zeros(6, 1), torch.zeros(VOCAB, dtype=torch.long), torch.zeros(0, dtype=torch.long), *torch.zeros(2, 1)
)


@pytest.fixture(params=["refinement", "beams"])
def caption(request):
    """Caption ``MEMORY`` with four candidates an image, given a weight and a score of what they name."""
    torch.manual_seed(0)
    options = {"dim": 16, "num_layers": 2, "num_experts": 3, "top_k": 2}
    if request.param == "beams":
        decoder = AutoregressiveDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
        return lambda weight: BeamSearch(SPECIAL, 4, {"rerank_weight": weight}).generate(
            decoder, MEMORY, guidance=NOTHING
        )
    decoder = MoEDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
    torch.nn.init.normal_(decoder.word.weight, std=1.0)
    logits = torch.randn(6, LONGEST, generator=torch.Generator().manual_seed(2))
    return lambda weight: ICMRDecoder(SPECIAL, 2, length_beam=4, guidance={"rerank_weight": weight}).generate(
        decoder, MEMORY, logits, guidance=NOTHING
    )


def test_a_heavy_score_decides_and_scores_stay_those_of_the_words(caption, monkeypatch):
    seen = []

    def last(guidance, tokens, lengths, repeat_penalty):
        seen.append((tokens, lengths))
        return torch.arange(4.0).expand(6, 4)

    monkeypatch.setattr(crf, "expected_cider", last)
    plain, chosen = caption(0.0), caption(1e6)
    ((tokens, lengths),) = seen  # a weight of zero asks nobody
    assert tokens.shape[:2] == lengths.shape == (6, 4)
    width = tokens.shape[2]
    assert (
        chosen.tokens[:, :width].tolist() == tokens[:, 3].tolist() and chosen.lengths.tolist() == lengths[:, 3].tolist()
    )
    assert (chosen.scores <= plain.scores).all() and (chosen.scores < 0).all()
    assert chosen.tokens.tolist() != plain.tokens.tolist()
    assert not torch.isin(tokens, torch.tensor([SPECIAL.mask, SPECIAL.bos, SPECIAL.eos])).any()


def test_words_and_expected_cider_are_weighed(monkeypatch):
    own = torch.tensor([[-1.0, -1.2, -1.1]]), torch.full((1, 3, 4), 7), torch.full((1, 3), 4)
    monkeypatch.setattr(crf, "expected_cider", lambda guidance, t, n, price: torch.tensor([[0.5, 1.5, 1.2]]) - price)
    chosen = [rerank(*own, RerankWeights(weight), NOTHING).item() for weight in (0, 0.2, 1)]
    assert chosen == [0, 2, 1]  # -0.9, -0.9, -0.86; -0.5, 0.3, 0.1


def test_a_beam_without_words_is_never_chosen(monkeypatch):
    log_probability = torch.tensor([[-1.0, -torch.inf]])
    monkeypatch.setattr(crf, "expected_cider", lambda guidance, t, n, price: torch.tensor([[0.0, 9.0]]))
    lengths = torch.tensor([[3, 0]])
    assert rerank(log_probability, torch.zeros(1, 2, 3), lengths, RerankWeights(9.0), NOTHING).tolist() == [0]


PHRASES = torch.tensor([1 * 5 + 2, 2 * 5 + 4, 4 * 5 + 1])  # of five words, the first of which is no concept
WORDS = torch.tensor([0, 1, 2, 2, 3])
IDF = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
CONTENT = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # the first concept is a function word


def probabilities(phrases=3):
    probability = torch.rand(2, 4 + phrases, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    return probability


def test_phrases_are_looked_up_for_each_images_captions():
    probability = probabilities()
    before = torch.tensor([[1, 2], [2, 5], [4, 1], [1, 4]])  # two captions an image; 5 is the boundary
    after = torch.tensor([[2, 4], [4, 1], [1, 2], [5, 1]])
    found = crf.bigram_probability(Guidance(probability, WORDS, PHRASES, IDF, CONTENT), before, after)
    of = probability.tolist()
    assert found.tolist() == [[of[0][4], of[0][5]], [of[0][5], 0.0], [of[1][6], of[1][4]], [0.0, of[1][6]]]
    none = Guidance(probabilities(0), WORDS, PHRASES[:0], IDF[:4], CONTENT[:4])
    assert crf.bigram_probability(none, before, after).tolist() == [[0.0, 0.0]] * 4


def test_expected_cider_is_the_cosine_with_what_people_would_write():
    probability = probabilities()
    tokens, lengths = (
        torch.tensor([[[1, 2, 4, 1, 2]], [[2, 4, 1, 2, 4]], [[2, 1, 0, 0, 0]]]),
        torch.tensor([[5], [2], [2]]),
    )
    probability = torch.cat([probability, probability[:1]])
    guidance = Guidance(probability, WORDS, PHRASES, IDF, CONTENT)

    def cosine(image, own, kind, more=0.0):
        """Of the entries that a caption holds with those that people write of the image."""
        square, likely = IDF[kind] ** 2, probability[image, kind]
        held = torch.isin(torch.arange(len(IDF))[kind], torch.tensor(own))
        norms = ((square * held).sum() + more) * (square * likely).sum()
        return (square * held * likely).sum() / norms.sqrt()

    words, pairs = slice(1, 4), slice(4, None)
    expected = [
        cosine(0, [1, 2, 3], words) + cosine(0, [4, 5, 6], pairs),
        cosine(1, [2, 3], words) + cosine(1, [5], pairs),
        cosine(2, [1, 2], words) + cosine(2, [], pairs, crf.UNKNOWN_PAIR**2),  # words 2 and 1 are no phrase
    ]
    found = crf.expected_cider(guidance, tokens, lengths).flatten()
    torch.testing.assert_close(found, 5 * torch.stack(expected))
    priced = crf.expected_cider(guidance, tokens, lengths, repeat_penalty=2.0).flatten()
    torch.testing.assert_close(priced, found - torch.tensor([2.0, 0.0, 0.0]), msg="word 2 again; word 1 is no content")


def test_what_the_image_shows_and_nothing_else_scores_highest():
    probability = torch.tensor([[0.0, 0.9, 0.8, 0.05, 0.7, 0.0, 0.0]])  # words 1 and 2, together
    guidance = Guidance(probability, WORDS, PHRASES, torch.ones(7), CONTENT)
    tokens, lengths = torch.tensor([[[1, 2, 0], [1, 2, 4], [2, 1, 0], [4, 1, 0]]]), torch.tensor([[2, 3, 2, 2]])
    right, wordy, backwards, wrong = crf.expected_cider(guidance, tokens, lengths)[0].tolist()
    assert 10 > right > wordy > backwards > wrong > 0
