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
    torch.zeros(6, 1), torch.zeros(VOCAB, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(1)
)


@pytest.fixture(params=["refinement", "beams"])
def caption(request):
    """Caption ``MEMORY`` with four candidates an image, given a weight and a score of what they name."""
    torch.manual_seed(0)
    options = {"dim": 16, "num_layers": 2, "num_experts": 3, "top_k": 2}
    if request.param == "beams":
        decoder = AutoregressiveDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
        return lambda weight: BeamSearch(SPECIAL, 4, {"rerank_weight": weight, "word_penalty": 0.0}).generate(
            decoder, MEMORY, guidance=NOTHING
        )
    decoder = MoEDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
    torch.nn.init.normal_(decoder.word.weight, std=1.0)
    logits = torch.randn(6, LONGEST, generator=torch.Generator().manual_seed(2))
    return lambda weight: ICMRDecoder(
        SPECIAL, 2, length_beam=4, guidance={"rerank_weight": weight, "word_penalty": 0.0}
    ).generate(decoder, MEMORY, logits, guidance=NOTHING)


def test_a_heavy_score_decides_and_scores_stay_those_of_the_words(caption, monkeypatch):
    seen = []

    def last(guidance, tokens, lengths, repeat_penalty):
        seen.append((tokens, lengths))
        return torch.arange(4.0).expand(6, 4)

    monkeypatch.setattr(crf, "expected_matches", last)
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


def test_names_count_and_words_cost(monkeypatch):
    log_probability, tokens = torch.tensor([[-1.0, -1.2, -1.1]]), torch.full((1, 3, 4), 7)
    lengths, named = torch.tensor([[2, 4, 4]]), torch.tensor([[0.5, 1.5, 1.2]])

    monkeypatch.setattr(crf, "expected_matches", lambda guidance, t, n, price: named)

    def chosen(weight, cost):
        return rerank(log_probability, tokens, lengths, RerankWeights(weight, cost), NOTHING).item()

    assert chosen(0.0, 0.4) == 0
    assert chosen(1.0, 0.0) == 1  # -0.5, 0.3, 0.1
    assert chosen(1.0, 0.45) == 0  # -1.4, -1.5, -1.7
    assert chosen(1.0, 0.35) == 1  # -1.2, -1.1, -1.3
    assert chosen(0.3, 0.1) == 2  # -0.91, -0.87, -0.86


def test_a_beam_without_words_is_never_chosen(monkeypatch):
    log_probability = torch.tensor([[-1.0, -torch.inf]])
    monkeypatch.setattr(crf, "expected_matches", lambda guidance, t, n, price: torch.tensor([[0.0, 9.0]]))
    lengths = torch.tensor([[3, 0]])
    assert rerank(log_probability, torch.zeros(1, 2, 3), lengths, RerankWeights(9.0), NOTHING).tolist() == [0]


PHRASES = torch.tensor([1 * 5 + 2, 2 * 5 + 4, 4 * 5 + 1])  # of five words, the first of which is no concept
WORDS = torch.tensor([0, 1, 2, 2, 3])
CONTENT = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # the first concept is a function word


def probabilities(phrases=3):
    probability = torch.rand(2, 4 + phrases, generator=torch.Generator().manual_seed(1))
    probability[:, 0] = 0.0
    return probability


def test_phrases_are_looked_up_for_each_images_captions():
    probability = probabilities()
    before = torch.tensor([[1, 2], [2, 5], [4, 1], [1, 4]])  # two captions an image; 5 is the boundary
    after = torch.tensor([[2, 4], [4, 1], [1, 2], [5, 1]])
    found = crf.bigram_probability(Guidance(probability, WORDS, PHRASES, CONTENT), before, after)
    of = probability.tolist()
    assert found.tolist() == [[of[0][4], of[0][5]], [of[0][5], 0.0], [of[1][6], of[1][4]], [0.0, of[1][6]]]
    none = Guidance(probabilities(0), WORDS, PHRASES[:0], CONTENT[:4])
    assert crf.bigram_probability(none, before, after).tolist() == [[0.0, 0.0]] * 4


def test_matches_are_the_concepts_and_phrases_of_a_caption_each_once_and_repeats_cost():
    probability = probabilities()
    tokens, lengths = torch.tensor([[[1, 2, 4, 1, 2]], [[2, 4, 1, 2, 4]]]), torch.tensor([[5], [2]])
    guidance = Guidance(probability, WORDS, PHRASES, CONTENT)
    matches = crf.expected_matches(guidance, tokens, lengths).flatten()
    (a, b), c = probability[:, 1:4].unbind(), probability[:, 4:]
    torch.testing.assert_close(matches[0], a.sum() + c[0].sum())
    torch.testing.assert_close(matches[1], b[1] + b[2] + c[1, 1])
    priced = crf.expected_matches(guidance, tokens, lengths, repeat_penalty=2.0).flatten()
    torch.testing.assert_close(priced, matches - torch.tensor([2.0, 0.0]), msg="word 2 again; word 1 is no content")
