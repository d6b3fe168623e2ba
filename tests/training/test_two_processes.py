"""Two gloo processes equal one that takes their batches together."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastcap.losses import alignment_loss
from fastcap.utils.distributed import (
    averaged,
    collective,
    gather_rows,
    sync_batch_norms,
    total,
    weigh,
)
from fastcap.utils.rng import ImageRandom, uniform
from tests.tiny import TINY
from tests.training.command import QUICK, ROOT, context, end, start, train

# Gradients as they are: Adam makes steps of the same size out of rounding errors.
SGD = ["optim.optimizer._target_=torch.optim.SGD", "~optim.optimizer.betas", "~optim.optimizer.fused"]
SGD += ["optim.optimizer.lr=0.02", "trainer.gradient_clip_val=null", "length.dropout=0"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2"]
PATIENCE = 90  # seconds until processes that wait for each other are given up


def _rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)]


def assert_equal_runs(one, two):
    """Losses to 1e-5 (of the loss where that is above one), metrics of captions exactly."""
    rows = [[row for row in _rows(folder) if row.keys() - {"step", "epoch"}] for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) > 2
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if "loss" in name or name.startswith(("moe/", "dlag/")):
                assert float(value) == pytest.approx(float(b[name]), rel=1e-5, abs=1e-5), name
            else:
                assert value == b[name], name
    assert any("val/cider" in row for row in rows[0])
    scores = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (one, two)]
    for name in scores[0]:
        if name.startswith("val/") and "loss" not in name:
            assert scores[0][name] == scores[1][name], name


def test_two_processes_equal_one(tmp_path):
    """Batches of 8 by one process, of 4 by each of two: masks, every loss, BatchNorm, gradients, metrics."""
    left_out = "resume", "+callbacks", "trainer.log_every", "~callbacks.progress"  # only the first process has a bar
    settings = [s for s in QUICK if not s.startswith(left_out)]
    settings += [*SGD, "trainer.log_every_n_steps=1", "data.source.num_train=24", "trainer.check_val_every_n_epoch=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    status, output = train(one, *settings, "data.batch_size=8", "data.eval_batch_size=8", "trainer.max_epochs=2")
    assert status == 0, output[-2000:]
    settings += [*DDP, "data.batch_size=4", "data.eval_batch_size=4"]
    port = str(29500 + os.getpid() % 2000)
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    ranks = [start(two, "train", *settings, name=f"{rank}.txt", LOCAL_RANK=str(rank), **world) for rank in (1, 0)]
    for process in ranks:
        status, output = end(process, PATIENCE)
        assert status == 0, output[-2000:]
    assert_equal_runs(one / "run", two / "run")


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    image, text, scale, pixels = torch.load(f"{folder}/given.pt", weights_only=True)
    own = slice(0, 3) if rank == 0 else slice(3, 8)  # unequal shares
    image, text, scale = image[own].requires_grad_(), text[own].requires_grad_(), scale.requires_grad_()
    assert total(torch.ones(1)).item() == 1, "alone outside collective()"
    norm = nn.Sequential(nn.BatchNorm2d(4))
    sync_batch_norms(norm)
    pixels = pixels[own].requires_grad_()
    with collective():
        loss = alignment_loss(gather_rows(image), gather_rows(text), scale)
        loss.backward()
        mean = weigh({"mean": image.detach().sum(1).mean()}, {"mean": len(image)})
        shown = averaged({**mean, "same": torch.tensor(3.0)})
        out = norm(pixels)
        (out.pow(3).sum() / 8).backward()
    results = {
        "loss": loss.detach(),
        "image": image.grad,
        "text": text.grad,
        "scale": scale.grad,
        "shown": shown,
        "out": out.detach(),
        "pixels": pixels.grad,
        "norm": norm.state_dict(),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gathered_losses_and_batch_norm_equal_those_of_one_process(tmp_path):
    torch.manual_seed(0)
    image, text = torch.randn(8, 6), torch.randn(8, 2, 6)
    scale, pixels = torch.tensor(2.0), 3 * torch.randn(8, 4, 5, 5) + 7
    torch.save((image, text, scale, pixels), tmp_path / "given.pt")
    processes = [context().Process(target=_process, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(1200)
        assert process.exitcode == 0
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    image.requires_grad_()
    text.requires_grad_()
    scale.requires_grad_()
    pixels.requires_grad_()
    loss = alignment_loss(image, text, scale)
    loss.backward()
    norm = nn.Sequential(nn.BatchNorm2d(4))
    out = norm(pixels)
    (out.pow(3).sum() / 8).backward()
    close = {"atol": 1e-5, "rtol": 1e-5}
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], loss.detach(), **close)
        torch.testing.assert_close(rank["scale"], scale.grad, **close)
        torch.testing.assert_close(rank["shown"]["mean"], image.detach().sum(1).mean(), **close)
        torch.testing.assert_close(rank["norm"], norm.state_dict(), **close)
        assert rank["shown"]["same"] == 3
    for name, whole in (("image", image), ("text", text)):  # averaged over processes, as DDP does with parameters
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]) / 2, whole.grad, **close)
    torch.testing.assert_close(torch.cat([rank["out"] for rank in ranks]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([rank["pixels"] for rank in ranks]), pixels.grad, atol=1e-4, rtol=1e-4)


def test_random_numbers_follow_the_image_and_not_the_batch():
    ids = torch.tensor([7, 1 << 40, 0, 3])
    whole = ImageRandom(1, 2, ids)
    first, second = whole.rand(8, 5), whole.rand(8, 5)
    part = ImageRandom(1, 2, ids[[2, 0]])
    assert torch.equal(part.rand(4, 3), first[[4, 5, 0, 1], :3])
    assert torch.equal(uniform(part, 4, 5), second[[4, 5, 0, 1]])
    assert not torch.equal(first, second) and not torch.equal(ImageRandom(1, 3, ids).rand(8, 5), first)
    many = ImageRandom(0, 0, torch.arange(2000)).rand(10000, 20)
    assert many.min() >= 0 and many.max() < 1 and len(many.unique()) > 0.98 * many.numel()
    assert abs(many.mean() - 0.5) < 2e-3 and abs(many.var() - 1 / 12) < 2e-3
    assert abs(torch.corrcoef(many.T) - torch.eye(20)).max() < 0.05


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ddp_from_the_command_line(tmp_path):
    """Lightning starts the second process itself: one folder, one set of results, equal to one process."""
    settings = [s for s in TINY if not s.startswith("callbacks.")]
    settings += [*SGD, "callbacks.speed_quality=null", "trainer.log_every_n_steps=1", "metrics.tokenizer=simple"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, more in {
        "one": ["data.batch_size=8", "data.eval_batch_size=8", "trainer.max_epochs=2"],
        "two": ["data.batch_size=4", "data.eval_batch_size=4", *DDP],
        "bf16": [*DDP, "trainer.precision=bf16-mixed", "trainer.max_epochs=1"],
    }.items():
        (tmp_path / name).mkdir()
        command = [sys.executable, "-m", "fastcap.cli", "train", *settings, *more]
        done = subprocess.run(
            command, cwd=tmp_path / name, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    folders = [list((tmp_path / name / "runs/scenes").iterdir()) for name in ("one", "two")]
    assert [len(found) for found in folders] == [1, 1]
    assert_equal_runs(folders[0][0], folders[1][0])
    assert len(json.loads((folders[1][0] / "captions.json").read_text())) == 16, "every process's captions"
    assert len(list((tmp_path / "two").rglob("results.json"))) == 1
