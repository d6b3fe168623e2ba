import random

import pytest

from fastcap.metrics import CiderReward
from fastcap.metrics.ngrams import ReferenceIndex


def test_reward_equals_the_metric_on_the_same_references():
    draw = random.Random(0)

    def caption(longest=14):
        return [draw.choice(range(5, 25)) for _ in range(draw.randint(0, longest))]

    references = {10 * i: [caption() or [5] for _ in range(draw.randint(1, 6))] for i in range(30)}
    candidates = [caption() for _ in references]
    reward = CiderReward(references)(list(references), candidates)
    index = ReferenceIndex([[" ".join(map(str, ids)) for ids in captions] for captions in references.values()])
    expected = index.score([" ".join(map(str, ids)) for ids in candidates]).cider_each
    assert reward == pytest.approx(expected.tolist(), abs=1e-9)
    assert max(reward) > 0.1


def test_several_captions_of_an_image_are_scored_one_by_one():
    reward = CiderReward({1: [[5, 6, 7, 8]], 2: [[9, 10, 11]]})
    right, wrong, empty = reward([1, 1, 1], [[5, 6, 7, 8], [9, 10], []])
    assert right == pytest.approx(10.0) and wrong == empty == 0.0
