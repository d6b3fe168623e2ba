"""Unpacking zip files: every member whole or not there, broken-off work taken up again."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from rich.progress import Progress

from fastcap.data.download.transfer import CHUNK, disk_full
from fastcap.data.errors import DataError


def unpack_images(archive: Path, folder: Path, progress: Progress) -> int:
    """Unpack an archive's pictures into one folder; those there already, of the right size, stay.

    A new folder is ``NAME.part`` until it is complete. Each file's CRC is checked on the way.

    Args:
        archive: Zip file of ``NAME/picture.jpg`` entries.
        folder: Where they go, ``.../NAME``.
        progress: Shows how far it is.

    Returns:
        Number of pictures in the archive.

    Raises:
        DataError: If the archive is broken or holds other paths, or the disk is full.
    """
    work = folder if folder.is_dir() else folder.with_name(folder.name + ".part")
    try:
        with zipfile.ZipFile(archive) as content:
            members = [info for info in content.infolist() if info.filename.endswith(".jpg")]
            for info in members:
                if PurePosixPath(info.filename).parts != (folder.name, PurePosixPath(info.filename).name):
                    raise DataError(f"{archive}: entry {info.filename!r} is not of the form {folder.name}/NAME.jpg")
            work.mkdir(parents=True, exist_ok=True)
            task = progress.add_task(f"{archive.name} → {folder.name}/", total=sum(i.file_size for i in members))
            for info in members:
                path = work / PurePosixPath(info.filename).name
                if not path.is_file() or path.stat().st_size != info.file_size:
                    unpack(content, info, path)
                progress.advance(task, info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: is no whole zip file ({error}); delete it to have it fetched again") from error
    if work != folder:
        os.replace(work, folder)
    return len(members)


def unpack(content: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Unpack one member to ``path``, which appears when it is whole.

    Raises:
        DataError: If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with content.open(member) as source, open(part, "wb") as target:
            while chunk := source.read(CHUNK):
                target.write(chunk)
        os.replace(part, path)
    except OSError as error:
        if disk_full(error):
            part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def unpack_json(archive: Path, member: str, path: Path) -> None:
    """Unpack one named file out of an archive.

    Raises:
        DataError: If the archive is broken or does not hold it.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            path.parent.mkdir(parents=True, exist_ok=True)
            unpack(content, content.getinfo(member), path)
    except KeyError as error:
        raise DataError(f"{archive}: holds no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: is no whole zip file ({error}); delete it to have it fetched again") from error
