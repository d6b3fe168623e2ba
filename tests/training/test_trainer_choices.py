"""What conf/trainer promises."""

import pytest
import torch

from fastcap.build import build_trainer
from fastcap.training import machine
from fastcap.training.machine import run_precision
from tests.tiny import tiny_config


def test_a_short_run_is_validated(tmp_path):
    trainer = build_trainer(tiny_config("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=8"), tmp_path)
    assert trainer.check_val_every_n_epoch == 3


@pytest.mark.parametrize("native", [False, True])
def test_auto_precision_is_what_the_cpu_computes(native, monkeypatch, caplog):
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: native)
    machine._precision.cache_clear()
    with caplog.at_level("INFO"):
        chosen = [run_precision({"precision": "auto", "accelerator": "cpu"}) for _ in range(2)]
        assert run_precision({"precision": "bf16-mixed", "accelerator": "cpu"}) == "bf16-mixed"
        assert run_precision({"precision": "64-true", "accelerator": "cpu"}) == "64-true"
    machine._precision.cache_clear()
    assert chosen == ["bf16-mixed" if native else "32-true"] * 2
    said = [record.levelname for record in caplog.records]
    assert said == (["INFO"] if native else ["INFO", "WARNING"])
    assert native or "20 times" in caplog.text


def test_a_capability_taken_away_counts(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert not machine.cpu_has_bf16()
