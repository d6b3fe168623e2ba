import pytest

from tests.training.command import QUICK, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    status, output = train(folder, *QUICK)
    assert status == 0, output[-2000:]
    return folder / "run"
