"""CaptionMetrics: order and repeats change nothing, wrong input is refused."""

import pytest
import torch

from fastcap.metrics import CaptionMetrics

SIMPLE = CaptionMetrics(tokenizer="simple")


def test_order_and_repeats_do_not_matter(nasty):
    expected = SIMPLE.score(*nasty)
    rows = [*reversed(range(12)), 3, 3, 5]
    assert SIMPLE.score(*([column[row] for row in rows] for column in nasty)) == expected
    repeated = SIMPLE.score([*torch.tensor(nasty.ids), 0], [*nasty.candidates, "another"], [*nasty.references, ["a"]])
    assert repeated == expected, "the first caption of an image counts"
    mean = sum(score["cider"] for score in expected.images.values()) / 12
    assert expected.metrics["cider"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [], [["a"]]), "1 image ids, 0 captions"),
        (([7], ["a"], [[]]), "image 7 needs"),
        (([7], ["a"], ["a dog"]), "image 7 needs"),
        (([], [], []), "validation set is empty"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        SIMPLE.score(*arguments)
