"""Pictures fit whatever the words, and are of what was given."""

import csv

import numpy as np
import pytest

from fastcap.reporting.pictures import draw_refinement, write_steps
from fastcap.training.log_wandb import read_picture
from fastcap.types import RefinementStep

IMAGE = np.full((32, 32, 3), 128, np.uint8)


def _steps(words, steps=2, confidence=0.5, remasked=False):
    return [RefinementStep(words, [confidence] * len(words), [remasked] * len(words)) for _ in range(steps)]


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (
            _steps(["antidisestablishmentarianism"] * 20, steps=8),
            {"expert_weights": [0.125] * 8, "reference": "long " * 60},
        ),
        (_steps(["$x$", "a_b", "ümlaut", ""]), {"expert_weights": [0.0, 1.0], "reference": "costs $5 and $6"}),
    ],
    ids=["long", "odd characters"],
)
def test_any_caption_fits(tmp_path, steps, options):
    draw_refinement(tmp_path / "x.png", IMAGE, " ".join(steps[0].words), steps, **options)
    picture = read_picture(tmp_path / "x.png")
    assert picture.shape[0] < 6000 and picture.shape[1] < 2200
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[-4:].reshape(-1, 3), picture[:, :4].reshape(-1, 3)])
    right = picture[:, -4:].reshape(-1, 3)
    assert (np.concatenate([border, right]) == 255).all(), "something is cut off at the edge"


def test_steps_and_positions_count_from_one(tmp_path):
    write_steps(tmp_path / "steps" / "x.csv", {"7": _steps(["a", "b"])})
    with open(tmp_path / "steps" / "x.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_id", "step", "position", "token", "confidence", "remasked"]
    assert [row[:4] for row in rows[1:]] == [["7", s, p, w] for s in "12" for p, w in (("1", "a"), ("2", "b"))]
