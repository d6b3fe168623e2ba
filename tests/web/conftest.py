"""A checkpoint trained in seconds, for the page's tests."""

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from fastcap.train import train
    from tests.tiny import tiny_config

    folder = tmp_path_factory.mktemp("web_run")
    train(tiny_config("trainer.max_epochs=1"), folder)
    return folder / "checkpoints/best.ckpt"
