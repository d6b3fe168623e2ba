from itertools import pairwise

import pytest
import torch

from fastcap.generation.icmr import SCHEDULES, linear, lowest, num_to_remask, sample_mask


@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 20])
def test_counts_fall_to_zero(schedule, num_steps):
    lengths = torch.arange(1, 21)
    counts = [num_to_remask(lengths, step, num_steps, schedule) for step in range(1, num_steps + 1)]
    assert (counts[-1] == 0).all()
    assert all((later <= earlier).all() for earlier, later in pairwise(counts))
    assert all(((count >= 0) & (count < lengths)).all() for count in counts)


def test_linear_counts_are_mask_predicts():
    assert [num_to_remask(torch.tensor([10]), t, 5, linear).item() for t in range(1, 6)] == [8, 6, 4, 2, 0]
    assert num_to_remask(torch.tensor([10]), 9, 10, linear).item() == 1


def test_lowest_marks_exactly_the_count_and_breaks_ties_by_position():
    score = torch.tensor([[0.5, 0.1, 0.1, 0.9], [0.0, 0.0, 0.0, 0.0]])
    assert lowest(score, torch.tensor([1, 2])).tolist() == [[False, True, False, False], [True, True, False, False]]


def test_masks_cover_all_counts_and_spare_padding():
    lengths = torch.arange(1, 11).repeat(400)
    mask = sample_mask(lengths, 12, 0.0, torch.Generator().manual_seed(0))
    count = mask.sum(1)
    assert not (mask & (torch.arange(12) >= lengths[:, None])).any()
    assert ((count >= 1) & (count <= lengths)).all()
    of_ten = count[lengths == 10]
    frequency = torch.bincount(of_ten, minlength=11)[1:] / len(of_ten)
    assert frequency.min() > 0.05 and frequency.max() < 0.16
