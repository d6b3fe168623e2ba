"""A checkpoint's configuration builds FastCap's parts, and nothing else unless told."""

import re
from pathlib import Path

import pytest
import torch

from fastcap.build import load_checkpoint
from fastcap.training.checkpoints import CheckpointError, not_allowed

NAMED = sorted(
    set(re.findall(r"_target_: (\S+)", "".join(p.read_text(encoding="utf-8") for p in Path("conf").rglob("*.yaml"))))
)


@pytest.mark.parametrize("target", NAMED)
def test_whatever_conf_names_is_allowed(target):
    assert not_allowed({"backbone": {"_target_": target}}) is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "hydra.utils.instantiate",
        "fastcap.data.pixels.os.system",  # defined elsewhere, though reached by our name
        "lightning.pytorch.callbacks.model_checkpoint.os.remove",
        "fastcap.training.checkpoints.AtomicCheckpointIO.remove_checkpoint",
        "fastcapsule.evil",
        7,
    ],
)
def test_programs_are_not(target):
    found = not_allowed({"decoder": {"layers": [{"part": {"_target_": target}}]}})
    assert found is not None and found.startswith(f"decoder.layers.0.part._target_` is {target!r}")


def test_a_package_of_ones_own_is_allowed_by_name(monkeypatch):
    config = {"backbone": {"_target_": "mine.backbones.Large"}}
    assert "FASTCAP_ALLOW=mine" in not_allowed(config)
    monkeypatch.setenv("FASTCAP_ALLOW", "other, mine")
    assert not_allowed(config) is None
    assert not_allowed({"backbone": {"_target_": "mineral.Large"}}) is not None


def test_a_checkpoint_that_names_a_program_runs_none(tiny_checkpoint, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "evil.ckpt"
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    checkpoint["fastcap"]["config"]["refinement"] = {"_target_": "pathlib.Path.mkdir", "self": str(proof)}
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: field `fastcap\.config\.refinement\._target_` is 'pathlib"):
        load_checkpoint(path)
    assert not proof.exists()
