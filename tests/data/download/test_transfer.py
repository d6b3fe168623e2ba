"""Downloads over connections that fail."""

import hashlib
import random

import pytest

from fastcap.data import DataError
from fastcap.data.download.transfer import check_space, fetch
from tests.data.download.server import Site, serve

DATA = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def site():
    site = Site()
    site.files["/a.zip"] = DATA
    with serve(site) as site.url:
        yield site


def bring(site, path, md5=MD5, attempts=3, name="/a.zip"):
    fetch(site.url + name, path, md5, attempts, backoff=0.01)


def test_a_broken_connection_goes_on_where_it_broke(site, tmp_path):
    site.cut["/a.zip"] = [200_000, 50_000]
    site.moved["/old.zip"] = "/a.zip"
    bring(site, tmp_path / "old.zip", name="/old.zip")
    assert (tmp_path / "old.zip").read_bytes() == DATA
    asked = [ranges for path, ranges in site.gets if path == "/a.zip"]
    assert asked == [None, "bytes=200000-", "bytes=250000-"] and site.sent["/a.zip"] == len(DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["old.zip"]


def test_a_later_run_goes_on_and_fetches_nothing_twice(site, tmp_path):
    site.cut["/a.zip"] = [100_000]
    with pytest.raises(DataError, match=r"a\.zip: given up after 1 attempts: .*a\.zip\.part \(100000 bytes\) is kept"):
        bring(site, tmp_path / "a.zip", attempts=1)
    assert not (tmp_path / "a.zip").exists()
    bring(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA and site.gets[-1][1] == "bytes=100000-"
    bring(site, tmp_path / "a.zip")
    assert len(site.gets) == 2
    (tmp_path / "a.zip").rename(tmp_path / "a.zip.part")  # a run killed before the last rename
    bring(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA and site.sent["/a.zip"] == len(DATA)


@pytest.mark.parametrize("ranges", [True, False], ids=["another file", "a server without ranges"])
def test_what_cannot_be_continued_starts_over(site, tmp_path, ranges):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 100_000)
    site.ranges = ranges
    bring(site, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == DATA


def test_a_busy_server_is_asked_again_and_given_up_in_the_end(site, tmp_path):
    site.busy["/a.zip"] = 2
    bring(site, tmp_path / "a.zip")
    site.busy["/a.zip"] = 99
    with pytest.raises(DataError, match=r"/a\.zip: given up after 3 attempts: the server answers 503"):
        bring(site, tmp_path / "b.zip")
    assert len(site.gets) == 6


def test_refusals_and_wrong_bytes_are_final_and_named(site, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"/b\.zip: the server answers 404"):
        bring(site, tmp_path / "b.zip", name="/b.zip")
    with pytest.raises(DataError, match=rf"/a\.zip: MD5 is {MD5}, must be 0000"):
        bring(site, tmp_path / "a.zip", md5="0" * 32)
    assert len(site.gets) == 2 and not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="given up after 1 attempts: "):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", attempts=1)
    with pytest.raises(DataError, match=r"1000000000\.0 GB needed, .* GB free"):
        check_space(tmp_path / "not/there/yet", 10**18)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"curl is needed to fetch it; install curl, or put the file at .*a\.zip"):
        bring(site, tmp_path / "a.zip")
