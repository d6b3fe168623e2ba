"""What every test shares: few threads, no network, W&B offline, and where the data lies."""

from __future__ import annotations

import fcntl
import importlib.util
import ipaddress
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Torch processes that want more threads than there are cores slow one another about tenfold: one a worker under xdist.
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
# Read when torch and wandb are imported, and by processes that tests start: hence set first.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(NUM_THREADS)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
# `make test ARGS=...` must not reach a make that a test runs.
for name in ("ARGS", "PHOTO", "RESULTS", "REFERENCES", "RUNS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(name, None)

# No torch here: xdist's controller reads this file too, and it tests nothing.
import pytest  # noqa: E402

_network_attempts: list[str] = []
_network_patch = pytest.MonkeyPatch()


class NetworkBlockedError(RuntimeError):
    """A test tried to reach another machine."""


def _is_local(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if not host or host in ("localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(what: str) -> None:
    _network_attempts.append(what)
    raise NetworkBlockedError(f"tests must not reach the network: {what}")


def _block_network(patch: pytest.MonkeyPatch) -> None:
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guard(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            _refuse(f"connect to {address[0]}:{address[1]}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        guard(self, address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        guard(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            _refuse(f"look up {host}")
        return getaddrinfo(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


def pytest_configure(config: pytest.Config) -> None:
    _block_network(_network_patch)


# Tests for one of xdist's workers, as they share what takes long to make: the process that commands are forked from,
# runs, checkpoints. They and other long files come first: one at the end would leave a worker idle.
TOGETHER = {
    "processes": ("tests/training/", "tests/test_entry_points", "tests/tools/test_dashboard"),
    "training": ("tests/test_training",),
    "serving": ("tests/serving/test_captioner", "tests/serving/test_exporting", "tests/serving/test_api"),
    "jobs": ("tests/jobs/", "tests/data/test_features", "tests/data/test_mixture"),
    "configs": ("tests/test_configs",),
}


def _group(nodeid: str) -> str:
    """Name of the group that a test belongs to: one of the above, else its file."""
    file = nodeid.partition("::")[0]
    return next((name for name, prefixes in TOGETHER.items() if file.startswith(prefixes)), file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the groups first; tests that need an export are slow."""
    order = list(TOGETHER)
    for item in items:
        if "tiny_export" in item.fixturenames:
            item.add_marker(pytest.mark.slow)  # exporting takes longer than most files of tests
    items.sort(key=lambda item: order.index(name) if (name := _group(item.nodeid)) in order else len(order))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups, in order. (``--dist loadgroup`` of xdist 3.8 hands out single tests under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    _network_patch.undo()


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """Fail a test that tried to reach the network, even where the code under test swallowed the error.

    A test about being offline takes this fixture, asserts on the list and clears it.
    """
    _network_attempts.clear()
    yield _network_attempts
    if _network_attempts:
        pytest.fail(f"the test tried to reach the network: {', '.join(_network_attempts)}")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """Return what ``make`` makes in a folder, made by one of xdist's workers and read by all.

    Args:
        factory: Where temporary folders lie.
        name: Name of the folder.
        make: Given the folder, makes something that can be pickled.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    result = folder / "made.pickle"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            folder.mkdir(exist_ok=True)
            result.write_bytes(pickle.dumps(make(folder)))
    return pickle.loads(result.read_bytes())


@pytest.fixture(scope="session")
def multirun(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """Two tiny training jobs of one Hydra multirun, with every logger: (their folders, what was printed)."""
    return made_once(tmp_path_factory, "multirun", _multirun)


def _multirun(folder: Path) -> tuple[list[Path], str]:
    from tests.tiny import TINY
    from tests.training.command import run

    loggers = "[csv,wandb,tensorboard]" if importlib.util.find_spec("tensorboard") else "[csv,wandb]"
    settings = [s for s in TINY if not s.startswith(("logger=", "callbacks.", "~callbacks.progress"))]
    settings += [f"logger={loggers}", "trainer.max_epochs=1", "trainer.log_every_n_steps=2", "refinement.num_steps=3"]
    settings += ["callbacks.speed_quality.steps=[1,3]", "optim.optimizer.lr=1e-3,2e-3", "hydra.sweep.dir=sweep"]
    status, output = run(folder, "train", "-m", *settings, COLUMNS="200", WANDB_DATA_DIR=str(folder))
    assert status == 0, output[-3000:]
    return [folder / "sweep" / job for job in ("0", "1")], output


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny captioner with random weights."""
    from tests.tiny_captioner import write_checkpoint

    weights = [
        "num_steps=2",
        "num_paths=3",
        "ngram_weights.trigram=0.4",
        "guidance.word_bias=1",
        "guidance.bigram_bias=1",
        "guidance.rerank_weight=1",
    ]
    options = ["concepts.min_phrase_count=2", *(f"refinement.{w}" for w in weights)]
    return made_once(tmp_path_factory, "tiny", lambda folder: write_checkpoint(folder / "tiny.ckpt", *options))


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Its export to ONNX: (folder, report)."""
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="exporting needs the extra `train`")
    from fastcap.export import parse_arguments
    from fastcap.serving.export import export

    options = parse_arguments(["--precisions", "fp32", "--compare", "16", "--threads", "1"])

    def make(folder: Path) -> tuple[Path, dict[str, Any]]:
        return folder / "export", export(tiny_checkpoint, folder / "export", options, lambda line: None)

    return made_once(tmp_path_factory, "exported", make)
