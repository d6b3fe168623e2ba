"""Bring files over HTTP, by curl, and take them out of archives, each whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from fastcap.data.errors import DataError
from fastcap.data.image_files import is_hidden, walk_files

ATTEMPTS = 6  # in a row that bring no byte
_LONGEST_WAIT = 120.0  # seconds between two attempts
_PASSING = ("408", "425", "429")  # refusals that may be none later; so may be those of 500 and above
_BEYOND = "the server cannot go on from here"
_NO_RANGES = 33  # curl's exit status where a server cannot go on in the middle


def fetch(url: str, path: Path, md5: str | None = None, attempts: int = ATTEMPTS, backoff: float = 1.0) -> None:
    """Bring a file to ``path``, into ``NAME.part`` first; a part goes on where it stopped, also in a later run.

    Args:
        url: Where it is.
        path: Where it goes; a file that is there already is only checked.
        md5: Its published digest, where there is one.
        attempts: Attempts in a row that bring no byte before giving up.
        backoff: Seconds before the first repeated attempt; doubled each time.

    Raises:
        DataError: Naming address and file: curl is missing, the server refuses or keeps failing, or other bytes come.
    """
    if path.is_file():
        return _check_md5(path, md5, f"{path} (delete it to have it fetched again)")
    if not shutil.which("curl"):
        raise DataError(f"{url}: curl is needed to fetch it; install curl, or put the file at {path} yourself")
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.is_file()
    failures = 0
    while True:
        before = _length(part)
        reason = _run_curl(url, part)
        # All bytes are there where a run was killed before the last rename.
        if reason is None or (reason == _BEYOND and md5 and _digest(part) == md5):
            break
        if reason == _BEYOND:
            part.unlink(missing_ok=True)
        failures = 1 if _length(part) > before else failures + 1
        if failures >= attempts:
            kept = f"; {part} ({_length(part)} bytes) is kept, the next run goes on from it" if _length(part) else ""
            raise DataError(f"{url}: given up after {failures} attempts: {reason}{kept}")
        time.sleep(min(backoff * 2 ** (failures - 1), _LONGEST_WAIT))
    try:
        _check_md5(part, md5, url)
    except DataError:
        part.unlink()
        if not resumed:  # a whole download that is wrong is wrong again
            raise
        fetch(url, path, md5, attempts, backoff)
    else:
        os.replace(part, path)


def _run_curl(url: str, part: Path) -> str | None:
    """Ask once for what is missing; returns why it failed, None when it did not. Refusals raise ``DataError``."""
    show = "--progress-bar" if sys.stderr.isatty() else "--silent"
    patience = "--connect-timeout 60 --speed-limit 1 --speed-time 60".split()
    about = ["--write-out", "%{http_code} %{errormsg}", "--output", str(part)]
    command = ["curl", "--fail", "--location", show, "--continue-at", "-", *patience, *about, url]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return None
    status, _, message = done.stdout.partition(" ")
    if done.returncode == _NO_RANGES or status == "416":
        return _BEYOND
    if status.startswith("4") and status not in _PASSING:
        raise DataError(f"{url}: the server answers {status}")
    busy = f"the server answers {status}" if status[:1] in "45" else ""
    return busy or message.strip() or f"curl ends with {done.returncode}"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _check_md5(path: Path, md5: str | None, name: str) -> None:
    if md5 is not None and (found := _digest(path)) != md5:
        raise DataError(f"{name}: MD5 is {found}, must be {md5}")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class Entry(NamedTuple):
    """A file in an archive, or beside one; it must be opened before the next entry is asked for."""

    name: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def entries(source: Path) -> Iterator[Entry]:
    """Yield the visible files of a zip or tar archive or a folder, or a file itself; ``DataError`` if it is broken."""
    try:
        for entry in _read(source):
            if not any(map(is_hidden, entry.name.parts)):
                yield entry
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file") from error
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError, EOFError, NotImplementedError) as error:
        raise DataError(f"{source}: is no whole archive ({error}); fetch it again") from error


def _read(source: Path) -> Iterator[Entry]:
    if source.is_dir():
        for path in walk_files(source):
            yield Entry(PurePosixPath(path.relative_to(source)), path.stat().st_size, partial(FileIO, path))
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield Entry(PurePosixPath(info.filename), info.file_size, partial(archive.open, info))
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as tar:
            for member in tar:
                if member.isfile():
                    yield Entry(PurePosixPath(member.name), member.size, partial(tar.extractfile, member))  # type: ignore[arg-type]
    elif source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz"):
        raise zipfile.BadZipFile("its end is missing")
    else:
        yield Entry(PurePosixPath(source.name), source.stat().st_size, partial(FileIO, source))


def copy(entry: Entry, path: Path) -> None:
    """Write an entry to ``path``, which appears when it is whole; one of its size that is there already stays."""
    if path.is_file() and path.stat().st_size == entry.size:
        return
    # Not atomic_write: a hundred thousand images would each wait for the disk twice, and a lost one is written again.
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with entry.open() as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_space(folder: Path, needed: int) -> None:
    """Make sure that ``needed`` bytes fit below a folder; raises ``DataError`` with both figures."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
