"""The choice among candidates: words' probabilities, and the concepts they name."""

import pytest
import torch

from fastcap.decoder.autoregressive import AutoregressiveDecoder
from fastcap.decoder.moe_decoder import MoEDecoder
from fastcap.generation.beam import BeamSearch
from fastcap.generation.crf import RerankWeights, rerank
from fastcap.generation.icmr import ICMRDecoder
from fastcap.types import Guidance, SpecialTokens

SPECIAL = SpecialTokens(pad=0, mask=1, unk=2, bos=3, eos=4)
VOCAB, LONGEST = 25, 8
MEMORY = torch.randn(6, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["refinement", "beams"])
def caption(request):
    """Caption ``MEMORY`` with four candidates an image, given a weight and a score of what they name."""
    torch.manual_seed(0)
    options = {"dim": 16, "num_layers": 2, "num_experts": 3, "top_k": 2}
    if request.param == "beams":
        decoder = AutoregressiveDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
        return lambda weight, naming: BeamSearch(SPECIAL, 4, {"rerank_weight": weight, "word_penalty": 0.0}).generate(
            decoder, MEMORY, guidance=Guidance(expected_matches=naming)
        )
    decoder = MoEDecoder(VOCAB, LONGEST, pad_id=0, **options).eval()
    torch.nn.init.normal_(decoder.word.weight, std=1.0)
    logits = torch.randn(6, LONGEST, generator=torch.Generator().manual_seed(2))
    return lambda weight, naming: ICMRDecoder(
        SPECIAL, 2, length_beam=4, guidance={"rerank_weight": weight, "word_penalty": 0.0}
    ).generate(decoder, MEMORY, logits, guidance=Guidance(expected_matches=naming))


def test_a_heavy_score_decides_and_scores_stay_those_of_the_words(caption):
    seen = []

    def last(tokens, lengths):
        seen.append((tokens, lengths))
        return torch.arange(4.0).expand(6, 4)

    plain, chosen = caption(0.0, last), caption(1e6, last)
    ((tokens, lengths),) = seen  # a weight of zero asks nobody
    assert tokens.shape[:2] == lengths.shape == (6, 4)
    width = tokens.shape[2]
    assert (
        chosen.tokens[:, :width].tolist() == tokens[:, 3].tolist() and chosen.lengths.tolist() == lengths[:, 3].tolist()
    )
    assert (chosen.scores <= plain.scores).all() and (chosen.scores < 0).all()
    assert chosen.tokens.tolist() != plain.tokens.tolist()
    assert not torch.isin(tokens, torch.tensor([SPECIAL.mask, SPECIAL.bos, SPECIAL.eos])).any()


def test_names_count_and_words_cost():
    log_probability, tokens = torch.tensor([[-1.0, -1.2, -1.1]]), torch.full((1, 3, 4), 7)
    lengths, named = torch.tensor([[2, 4, 4]]), torch.tensor([[0.5, 1.5, 1.2]])

    def chosen(weight, cost):
        guidance = Guidance(expected_matches=lambda t, n: named)
        return rerank(log_probability, tokens, lengths, RerankWeights(weight, cost), guidance).item()

    assert chosen(0.0, 0.4) == 0
    assert chosen(1.0, 0.0) == 1  # -0.5, 0.3, 0.1
    assert chosen(1.0, 0.45) == 0  # -1.4, -1.5, -1.7
    assert chosen(1.0, 0.35) == 1  # -1.2, -1.1, -1.3
    assert chosen(0.3, 0.1) == 2  # -0.91, -0.87, -0.86


def test_a_beam_without_words_is_never_chosen():
    log_probability = torch.tensor([[-1.0, -torch.inf]])
    guidance = Guidance(expected_matches=lambda t, n: torch.tensor([[0.0, 9.0]]))
    lengths = torch.tensor([[3, 0]])
    assert rerank(log_probability, torch.zeros(1, 2, 3), lengths, RerankWeights(9.0), guidance).tolist() == [0]
