"""CIDEr-D of token ids, as a reward."""

import pytest

from fastcap.metrics import CiderD


def test_several_captions_of_an_image_are_scored_one_by_one():
    reward = CiderD({1: [[5, 6, 7, 8]], 2: [[9, 10, 11]]})
    right, wrong, empty = reward([1, 1, 1], [[5, 6, 7, 8], [9, 10], []])
    assert right == pytest.approx(10.0) and wrong == empty == 0.0
