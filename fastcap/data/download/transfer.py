"""Files over HTTP that survive what networks do: broken connections, busy servers, redirects, wrong bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fastcap.data.errors import DataError

CHUNK = 1 << 16  # bytes; of a connection that breaks, less than this is lost
ATTEMPTS = 6  # in a row without one new byte
TIMEOUT = 60.0  # seconds without a byte
LONGEST_WAIT = 120.0  # seconds between two attempts
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_DROPPED = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class _Busy(Exception):
    """An answer that may be better next time.

    Attributes:
        wait: Seconds that the server asks for, or 0.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def progress_bar() -> Progress:
    """A bar for each file: bytes, speed, time left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )


class Transfer:
    """Downloads files, each into ``NAME.part`` first and under its name when it is whole.

    A part goes on where it stopped, also in a later run, as long as the server has the same file: its ETag (or date)
    and size are kept beside the part.

    Args:
        backoff: Seconds before the first repeated attempt; doubled each time.
        attempts: Attempts in a row that bring no byte before giving up.
        sleep: Waits so many seconds.
    """

    def __init__(
        self, backoff: float = 1.0, attempts: int = ATTEMPTS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.backoff, self.attempts, self.sleep = backoff, attempts, sleep
        self.session = requests.Session()
        # Ranges count bytes as sent: a server that compresses on the way would shift them.
        self.session.headers.update({"Accept-Encoding": "identity", "User-Agent": "fastcap"})

    def size(self, url: str) -> int | None:
        """Bytes of a file by its server's word (Content-Length); None where it does not say."""

        def ask(_: int) -> int | None:
            with self.session.head(url, allow_redirects=True, timeout=TIMEOUT) as answer:
                if answer.status_code in (405, 501):  # this server has no HEAD
                    return None
                _check_status(answer)
                return _number(answer.headers.get("Content-Length"))

        found: int | None = self._persist(url, ask)
        return found

    def fetch(self, url: str, path: Path, progress: Progress, md5: str | None = None) -> None:
        """Bring a file to ``path``; a file that is there already is only checked.

        Args:
            url: Where it is.
            path: Where it goes.
            progress: Shows how far it is.
            md5: Its published digest, where there is one.

        Raises:
            DataError: Naming address and file, when the server refuses, keeps failing, or sends other bytes.
        """
        if path.is_file():
            check_md5(path, md5, f"{path} (delete it to have it fetched again)")
            return
        part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        task = progress.add_task(path.name, total=None)
        for chance in (1, 2):
            resumed = part.is_file()
            self._persist(url, lambda _: self._continue(url, part, note, progress, task), part)
            try:
                check_md5(part, md5, path.name)
                break
            except DataError as error:
                part.unlink()
                note.unlink(missing_ok=True)
                if chance == 2 or not resumed:  # a whole download that is wrong is wrong again
                    raise DataError(f"{url}: {error}; what came was thrown away") from error
        os.replace(part, path)
        note.unlink(missing_ok=True)

    def _persist(self, url: str, work: Callable[[int], Any], part: Path | None = None) -> Any:
        """Do ``work`` until it succeeds; attempts that bring bytes do not count against it."""
        failures = 0
        while True:
            before = _length(part)
            try:
                return work(failures)
            except (*_DROPPED, _Busy) as error:
                failures = 1 if _length(part) > before else failures + 1
                if failures >= self.attempts:
                    reason = str(error) if isinstance(error, _Busy) else f"{type(error).__name__}: {error}"
                    kept = (
                        f" ({part}, {_length(part)} bytes, is kept: the next run goes on from it)"
                        if _length(part)
                        else ""
                    )
                    raise DataError(f"{url}: given up after {failures} attempts: {reason}{kept}") from error
                wait = max(self.backoff * 2 ** (failures - 1), getattr(error, "wait", 0.0))
                self.sleep(min(wait, LONGEST_WAIT))
            except requests.RequestException as error:
                raise DataError(f"{url}: cannot be fetched ({error})") from error

    def _continue(self, url: str, part: Path, note: Path, progress: Progress, task: Any) -> None:
        """One request for what is missing, appended to the part."""
        have, known = _length(part), _read_note(note)
        headers = {}
        if have and known:
            headers = {"Range": f"bytes={have}-"}
            if known.get("validator"):
                headers["If-Range"] = known["validator"]
        with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:
                if known and known.get("size") == have:
                    return
                part.unlink(missing_ok=True)
                raise _Busy(f"the server has no byte {have} of this file")
            _check_status(answer)
            start, total = _span(answer)
            if start != have or (start and known.get("size") not in (None, total)):
                if start:  # another stretch than was asked for, or of another file
                    part.unlink(missing_ok=True)
                    raise _Busy("the file on the server has changed")
                have = 0
            validator = answer.headers.get("ETag", "")
            if not validator or validator.startswith("W/"):
                validator = answer.headers.get("Last-Modified", "")
            note.write_text(json.dumps({"url": url, "size": total, "validator": validator}), encoding="utf-8")
            progress.update(task, total=total, completed=have)
            try:
                with open(part, "ab" if have else "wb") as file:
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        progress.advance(task, len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if isinstance(error, requests.RequestException):
                    raise
                raise DataError(f"{part}: cannot be written ({error.strerror or error})") from error
        if total is not None and _length(part) != total:
            raise _Busy(f"the connection ended after {_length(part)} of {total} bytes")


def check_md5(path: Path, md5: str | None, name: str = "") -> None:
    """Compare a file with its published digest, if it has one.

    Raises:
        DataError: If they differ.
    """
    if md5 is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise DataError(f"{name or path}: MD5 is {found}, must be {md5}")


def check_space(folder: Path, needed: int) -> None:
    """Make sure that ``needed`` bytes fit.

    Raises:
        DataError: If they do not, with both figures.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def disk_full(error: OSError) -> bool:
    """Whether an error says that the disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _check_status(answer: requests.Response) -> None:
    status = f"the server answers {answer.status_code} {answer.reason}"
    if answer.status_code in _PASSING:
        raise _Busy(status, float(_number(answer.headers.get("Retry-After")) or 0))
    if answer.status_code not in (200, 206):
        raise DataError(f"{answer.url}: {status}")


def _span(answer: requests.Response) -> tuple[int, int | None]:
    """First byte and whole size of what an answer carries."""
    if answer.status_code == 200:
        return 0, _number(answer.headers.get("Content-Length"))
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = _number(span.partition("-")[0])
    if start is None:
        raise DataError(f"{answer.url}: header Content-Range is {answer.headers.get('Content-Range')!r}")
    return start, _number(total)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _length(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.is_file() else 0


def _read_note(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
