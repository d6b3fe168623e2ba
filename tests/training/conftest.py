import pytest

from tests.conftest import made_once
from tests.training.command import QUICK, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a run that was left alone."""
    return made_once(tmp_path_factory, "whole", _whole)


def _whole(folder):
    status, output = train(folder, *QUICK)
    assert status == 0, output[-2000:]
    return folder / "run"
