"""CaptionMetrics as a torchmetrics metric: states, copies, wrong input, two processes."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastcap.metrics import CaptionMetrics, caption, caption_faults


def added(captions, tokenizer="simple", rows=None):
    metric = CaptionMetrics(tokenizer=tokenizer)
    rows = range(len(captions.ids)) if rows is None else rows
    for i in rows:
        metric.update([captions.ids[i]], [captions.candidates[i]], [captions.references[i]])
    return metric


def test_batches_order_and_repeats_do_not_matter(nasty):
    expected = added(nasty).compute()
    assert added(nasty, rows=[*reversed(range(12)), 3, 3, 5]).compute() == expected
    metric = CaptionMetrics(tokenizer="simple")
    metric.update(torch.tensor(nasty.ids), *nasty[1:])
    metric.update([0], ["another caption for image 0"], [["a"]])  # the first wins
    metric.update([], [], [])
    assert metric.compute() == expected


def test_reset_copy_pickle_device_and_checkpoint(nasty):
    metric = added(nasty)
    expected = metric.compute()
    assert not metric.state_dict()
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone(), metric.to("cpu").double()):
        other._computed = None
        assert other.compute() == expected
        assert other.compute_per_image() == metric.compute_per_image()
    metric.reset()
    assert not metric.records
    with pytest.raises(ValueError, match="validation set is empty"):
        metric.compute()
    metric.update(*nasty)
    assert metric.compute() == expected
    assert metric(*nasty) == expected  # forward: the batch's score, and added to the rest


def test_the_sets_scores_and_each_images_come_from_one_scoring(nasty, monkeypatch):
    metric, calls, tokenize = added(nasty), [], caption.tokenize
    monkeypatch.setattr(caption, "tokenize", lambda *args: calls.append(args) or tokenize(*args))
    expected, each = metric.compute(), metric.compute_per_image()
    assert len(calls) == 1 and sum(score["cider"] for score in each.values()) / len(each) == pytest.approx(
        expected["cider"]
    )
    metric.update([99], ["a cat"], [["a cat sits"]])
    assert 99 in metric.compute_per_image() and len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [], [["a"]]), "1 image ids, 0 captions"),
        (([7], ["a"], [[]]), "image 7 needs"),
        (([7], ["a"], ["a dog"]), "image 7 needs"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        CaptionMetrics(tokenizer="simple").update(*arguments)


def _process(rank, folder, captions, shards):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for shard in shards:
        metric = added(captions, rows=shard[rank])
        for _ in range(2):  # the second time after unsync and more data, as in the next validation of a trainer
            try:
                results.append((metric.compute_per_image(), metric.compute(), len(metric.records)))
            except ValueError as error:
                results.append(str(error))
            metric.reset()
            for i in shard[rank]:
                metric.update([captions.ids[i]], [captions.candidates[i]], [captions.references[i]])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path, nasty):
    rows = list(range(12))
    shards = [
        (rows[0::2], rows[1::2]),
        (rows[:9], rows[9:]),  # uneven
        (rows, []),  # one without data
        ([], rows),
        ([*rows[:7], 0, 1], [*rows[5:], 0]),  # padded and overlapping
        ([], []),
    ]
    mp.spawn(_process, args=(str(tmp_path), nasty, shards), nprocs=2)
    one = added(nasty)
    per_image, expected = one.compute_per_image(), one.compute()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert len(results) == 2 * len(shards)
        for number, result in enumerate(results[:-2]):
            assert result == (per_image, expected, len(shards[number // 2][rank]))
        assert all("validation set is empty" in result for result in results[-2:])


def test_caption_faults():
    faults = caption_faults(["a dog", "A dog", "a a dog runs", ""])
    assert faults == {"distinct": 75.0, "repetitions": 25.0, "length_mean": 2.0}
    with pytest.raises(ValueError, match="at least one"):
        caption_faults([])
