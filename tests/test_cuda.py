"""What holds on a CPU holds on a GPU. Skipped where there is none."""

import copy
import json

import pytest
import torch

from fastcap.backbone.scan import grid_scan
from fastcap.build import build_datamodule, build_module, load_checkpoint
from fastcap.train import train
from fastcap.utils.rng import ImageRandom
from tests.backbone.recurrence import grid_scan_reference
from tests.tiny import tiny_config
from tests.tiny_captioner import painted, write_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

AUTOREGRESSIVE = ["decoder=autoregressive_mini", "refinement=greedy"]
SCST = ["objective=scst", "refinement.num_steps=2"]


@pytest.fixture(autouse=True)
def exact_products():
    """Keep TF32 out: what is compared is the code, not the number of bits."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


@pytest.mark.parametrize("shape", [(5, 10), (14, 14), (15, 20)])
def test_the_scan_equals_the_recurrence_with_its_gradients(shape):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(2, *shape, *size, generator=generator)

    drawn = draw(4, 8), -2 * draw(4).abs(), draw(6), draw(6)

    def run(scan, device):
        inputs = [tensor.to(device).requires_grad_() for tensor in drawn]
        y = scan(*inputs)
        return [t.cpu() for t in (y, *torch.autograd.grad(y.square().sum(), inputs))]

    for fast, slow in zip(run(grid_scan, "cuda"), run(grid_scan_reference, "cpu"), strict=True):
        torch.testing.assert_close(fast, slow, rtol=2e-4, atol=2e-4 * slow.abs().max().item())


@pytest.mark.parametrize("choice", [[], AUTOREGRESSIVE], ids=["masked", "autoregressive"])
def test_a_training_step_is_that_of_a_cpu(choice):
    cfg = tiny_config("decoder.dropout=0", "length.dropout=0", *choice)
    datamodule = build_datamodule(cfg)
    datamodule.setup("fit")
    module = build_module(cfg, datamodule)
    batch = next(iter(datamodule.val_dataloader()))

    def step(device):
        own = copy.deepcopy(module).to(device).train()
        losses, _ = own.losses(batch.to(device), ImageRandom(0, 0, batch.image_ids))
        losses["total"].backward()
        gradients = {n: p.grad.cpu() for n, p in own.named_parameters() if p.grad is not None}
        return {n: loss.item() for n, loss in losses.items()}, gradients

    (here, own), (there, theirs) = step("cpu"), step("cuda")
    assert there == pytest.approx(here, rel=1e-4, abs=1e-5) and own.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in own.values())
    for name, gradient in own.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=lambda m, n=name: n + m)


def settled_model(folder, choice):
    """Random weights whose words differ by more than rounding."""
    if not any(value.startswith("decoder=") for value in choice):
        return load_checkpoint(write_checkpoint(folder / "tiny.ckpt", *choice)).model.eval()
    cfg = tiny_config(*choice)
    datamodule = build_datamodule(cfg)
    torch.manual_seed(3)
    model = build_module(cfg, datamodule).model.eval()
    with torch.no_grad():
        model.decoder.word.weight *= 4
    return model


@pytest.mark.parametrize("choice", [[], [*AUTOREGRESSIVE, "refinement.num_beams=3"]], ids=["icmr", "beam"])
def test_captions_are_those_of_a_cpu(choice, tmp_path):
    model = settled_model(tmp_path, choice)
    images = torch.stack([torch.tensor(painted(seed)).permute(2, 0, 1) for seed in range(8)])
    here = model(images)
    there = model.cuda()(images.cuda())
    assert there.tokens.cpu().tolist() == here.tokens.tolist() and there.tokens.is_cuda
    torch.testing.assert_close(there.scores.cpu(), here.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "choice",
    [[], ["compile.backend=inductor"], AUTOREGRESSIVE, SCST],
    ids=["masked", "compiled", "autoregressive", "scst"],
)
def test_a_run_in_bf16_trains_scores_and_saves(choice, tmp_path):
    cfg = tiny_config(
        "trainer=gpu", "trainer.precision=auto", "metrics.tokenizer=simple", "optim.optimizer.lr=1e-3", *choice
    )
    metrics = train(cfg, tmp_path / "run")
    assert json.loads((tmp_path / "run/results.json").read_text())["precision"] == "bf16-mixed"
    assert {"val/cider", "val/loss", "train/loss"} <= metrics.keys()
    assert all(value == value for value in metrics.values())
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt").model
    assert all(parameter.device.type == "cpu" and parameter.isfinite().all() for parameter in best.parameters())
