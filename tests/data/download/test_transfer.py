"""Downloads over a connection that fails in every way it can."""

import hashlib
import random

import pytest

from fastcap.data import DataError
from fastcap.data.download import transfer as module
from fastcap.data.download.transfer import CHUNK, Transfer, check_space, progress_bar
from tests.data.download.server import Site, serve

DATA = random.Random(0).randbytes(3_000_000)
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def site():
    site = Site()
    site.files["/a.zip"] = DATA
    with serve(site) as site.url:
        yield site


@pytest.fixture
def waits():
    return []


def _fetch(site, path, waits, md5=MD5, attempts=3, name="/a.zip"):
    Transfer(1.0, attempts, sleep=waits.append).fetch(site.url + name, path, progress_bar(), md5)


def test_a_broken_connection_goes_on_where_it_broke(site, tmp_path, waits):
    site.cut["/a.zip"] = [20 * CHUNK, 10 * CHUNK]
    _fetch(site, tmp_path / "a.zip", waits)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert [asked for _, asked in site.gets] == [None, f"bytes={20 * CHUNK}-", f"bytes={30 * CHUNK}-"]
    assert site.sent["/a.zip"] == len(DATA), "no byte came twice"
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_later_run_goes_on_too(site, tmp_path, waits):
    site.cut["/a.zip"] = [10 * CHUNK]
    with pytest.raises(DataError, match=r"a\.zip: given up after 1 attempts.*a\.zip\.part, 655360 bytes, is kept"):
        _fetch(site, tmp_path / "a.zip", waits, attempts=1)
    assert not (tmp_path / "a.zip").exists()
    _fetch(site, tmp_path / "a.zip", waits)
    assert (tmp_path / "a.zip").read_bytes() == DATA and site.gets[-1][1] == "bytes=655360-"
    _fetch(site, tmp_path / "a.zip", waits)
    assert len(site.gets) == 2, "what is there is not fetched again"


def test_a_run_killed_before_the_last_rename_fetches_nothing(site, tmp_path, waits):
    site.cut["/a.zip"] = [len(DATA) - 1]
    with pytest.raises(DataError):
        _fetch(site, tmp_path / "a.zip", waits, attempts=1)
    (tmp_path / "a.zip.part").write_bytes(DATA)
    _fetch(site, tmp_path / "a.zip", waits)
    assert (tmp_path / "a.zip").read_bytes() == DATA and site.sent["/a.zip"] == len(DATA) - 1


@pytest.mark.parametrize("ranges", [True, False], ids=["another file", "a server without ranges"])
def test_what_cannot_be_continued_starts_over(site, tmp_path, waits, ranges):
    site.cut["/a.zip"] = [1_000_000]
    with pytest.raises(DataError):
        _fetch(site, tmp_path / "a.zip", waits, attempts=1)
    new = DATA[::-1] if ranges else DATA
    site.files["/a.zip"], site.ranges = new, ranges
    _fetch(site, tmp_path / "a.zip", waits, md5=hashlib.md5(new).hexdigest())
    assert (tmp_path / "a.zip").read_bytes() == new


def test_a_busy_server_is_asked_again_later_each_time(site, tmp_path, waits):
    site.busy["/a.zip"] = 2
    _fetch(site, tmp_path / "a.zip", waits)
    assert (tmp_path / "a.zip").read_bytes() == DATA and waits == [1.0, 2.0]


def test_a_servers_own_waiting_time_counts(site, tmp_path, waits):
    site.busy["/a.zip"], site.retry_after = 1, "7"
    _fetch(site, tmp_path / "a.zip", waits)
    assert waits == [7.0]


def test_a_server_that_stays_busy_is_given_up(site, tmp_path, waits):
    site.busy["/a.zip"] = 99
    with pytest.raises(DataError, match=r"/a\.zip: given up after 3 attempts: the server answers 503"):
        _fetch(site, tmp_path / "a.zip", waits)
    assert len(site.gets) == 3


def test_a_redirect_is_followed_with_its_range(site, tmp_path, waits):
    site.moved["/old.zip"], site.cut["/a.zip"] = "/a.zip", [20 * CHUNK]
    _fetch(site, tmp_path / "old.zip", waits, name="/old.zip")
    assert (tmp_path / "old.zip").read_bytes() == DATA
    assert site.gets[-1] == ("/a.zip", f"bytes={20 * CHUNK}-")


def test_a_wrong_checksum_leaves_nothing(site, tmp_path, waits):
    with pytest.raises(DataError, match=rf"/a\.zip: a\.zip: MD5 is {MD5}, must be 0000") as error:
        _fetch(site, tmp_path / "a.zip", waits, md5="0" * 32)
    assert "thrown away" in str(error.value) and not list(tmp_path.iterdir())
    assert len(site.gets) == 1


def test_a_part_with_wrong_bytes_is_fetched_anew(site, tmp_path, waits):
    site.cut["/a.zip"] = [1_000_000]
    with pytest.raises(DataError):
        _fetch(site, tmp_path / "a.zip", waits, attempts=1)
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1_000_000)
    _fetch(site, tmp_path / "a.zip", waits)
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_refusals_are_final_and_named(site, tmp_path, waits):
    with pytest.raises(DataError, match=r"/b\.zip: the server answers 404"):
        _fetch(site, tmp_path / "b.zip", waits, name="/b.zip")
    with pytest.raises(DataError, match="given up after 3 attempts: ConnectionError"):
        Transfer(sleep=waits.append, attempts=3).fetch("http://127.0.0.1:9/x", tmp_path / "x", progress_bar())
    assert len(site.gets) == 1


def test_sizes(site):
    transfer = Transfer()
    assert transfer.size(f"{site.url}/a.zip") == len(DATA)
    site.head = False
    assert transfer.size(f"{site.url}/a.zip") is None


def test_a_full_disk_is_named(site, tmp_path, waits, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(DataError, match=r"a\.zip\.part: cannot be written \(No space left"):
        _fetch(site, tmp_path / "a.zip", waits)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"1000000000\.0 GB needed, .* GB free"):
        check_space(tmp_path / "not/there/yet", 10**18)
