"""What the pictures show: colours, frames, sizes that fit whatever the words."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fastcap.reporting import RefinementTrace, SpeedPoint, draw_captions, draw_curve, draw_refinement
from fastcap.reporting.draw_refinement import COLOURS
from fastcap.reporting.figure import VERMILION
from fastcap.reporting.trace import StepTrace, trace_rows
from fastcap.training.media import read_picture

IMAGE = np.full((32, 32, 3), 128, np.uint8)


def _trace(words, confidence=0.5, remasked=False, steps=2, **options):
    step = StepTrace(words, [confidence] * len(words), [remasked] * len(words), [True] * len(words))
    return RefinementTrace("1", IMAGE, " ".join(words), -0.5, [step] * steps, **options)


def _share(picture, colour):
    wanted = np.array([round(255 * channel) for channel in to_rgb(colour)])
    return (np.abs(picture.astype(int) - wanted).max(-1) <= 6).mean()


def test_confidence_is_the_colour_of_a_box(tmp_path):
    for confidence in (0.1, 0.9):
        draw_refinement(tmp_path / "x.png", _trace(["word"] * 4, confidence))
        picture = read_picture(tmp_path / "x.png")
        assert _share(picture, COLOURS(confidence)) > 0.01 > _share(picture, COLOURS(1 - confidence))


def test_masked_again_is_marked(tmp_path):
    shares = []
    for remasked in (False, True):
        draw_refinement(tmp_path / "x.png", _trace(["word"] * 4, remasked=remasked))
        shares.append(_share(read_picture(tmp_path / "x.png"), VERMILION))
    assert shares[1] > shares[0] + 0.002


@pytest.mark.parametrize(
    "trace",
    [
        _trace(["one"], steps=1),
        _trace(["antidisestablishmentarianism"] * 20, steps=8, expert_weights=[0.125] * 8, reference="long " * 60),
        _trace(["$x$", "a_b", "ümlaut", ""], expert_weights=[0.0, 1.0], reference="costs $5 and $6"),
    ],
    ids=["one word", "long", "odd characters"],
)
def test_any_caption_fits(tmp_path, trace):
    draw_refinement(tmp_path / "x.png", trace)
    picture = read_picture(tmp_path / "x.png")
    assert picture.shape[0] < 6000 and picture.shape[1] < 2200
    border = np.concatenate([picture[:4].reshape(-1, 3), picture[-4:].reshape(-1, 3), picture[:, :4].reshape(-1, 3)])
    right = picture[:, -4:].reshape(-1, 3)
    assert (np.concatenate([border, right]) == 255).all(), "something is cut off at the edge"


def test_rows_count_from_one():
    rows = trace_rows([_trace(["a", "b"], steps=2)])
    assert [row[1:4] for row in rows] == [[1, 1, "a"], [1, 2, "b"], [2, 1, "a"], [2, 2, "b"]]


def test_curve_and_captions_are_drawn(tmp_path):
    points = [SpeedPoint(steps, steps * 0.5, 100.0 - steps, 10.0) for steps in (1, 2)]
    draw_curve(tmp_path / "curve.png", points, chosen=2, note="of a test")
    draw_curve(tmp_path / "flat.png", points[:1], chosen=4, note="one point")
    draw_captions(tmp_path / "captions.png", [IMAGE] * 3, ["a $5 note", "", "c"], [["r"], ["$"], []], columns=2)
    for name in ("curve", "flat", "captions"):
        assert read_picture(tmp_path / f"{name}.png").std() > 5
