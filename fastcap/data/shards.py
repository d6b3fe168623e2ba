"""Resized images in large files (shards) that litdata reads from a local folder or an object store."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from fastcap.data.errors import DataError
from fastcap.data.pixels import decode_all, decode_image
from fastcap.types import CaptionRecords

ABOUT = "fastcap.json"
_VERSION = 1
_REMOTE = ("s3://", "gs://", "azure://", "r2://", "local:")
_KEEP_ALL = "1000000GB"  # litdata deletes what it has fetched above this


def is_remote(place: str) -> bool:
    """Whether a place is an address of litdata's ("local:FOLDER" is read like a store) and not a folder."""
    return place.startswith(_REMOTE)


def load_litdata() -> ModuleType:
    """Import litdata.

    Raises:
        DataError: Naming the extra, when it is not installed.
    """
    try:
        import litdata
    except ImportError as error:
        raise DataError(
            f"shards need litdata ({error}): .venv/bin/pip install -c constraints.txt -e '.[streaming]'"
        ) from error
    module: ModuleType = litdata
    return module


def write_shards(
    records: CaptionRecords, folder: Path, size: int, quality: int | None = None, shard_mb: int = 64
) -> dict[str, Any]:
    """Decode every image of a split and write shards; ``folder`` appears at once when complete.

    Args:
        records: The split.
        folder: Where the shards go; replaced when it exists.
        size: Side of the square images, in pixels.
        quality: JPEG quality, chroma in full; None keeps the pixels as they are.
        shard_mb: Size of a shard, in MB.

    Returns:
        What ``fastcap.json`` beside the shards says: "size", "quality", "image_ids" in the split's order, "bad"
        (position and reason of images that cannot be decoded; shards lack them), "shards" (name, bytes, images).

    Raises:
        DataError: When litdata is missing, the folder cannot be written or no image can be decoded.
    """
    load_litdata()
    from litdata.streaming.writer import BinaryWriter

    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        writer = BinaryWriter(str(partial), chunk_bytes=shard_mb << 20)
        bad: list[tuple[int, str]] = []
        written = 0
        for position, image in enumerate(decode_all(records, size)):
            if isinstance(image, DataError):
                bad.append((position, str(image)))
                continue
            writer.add_item(written, {"id": int(records.image_ids[position]), "pixels": _encode(image, quality)})
            written += 1
        if not written:
            raise DataError(f"{records.name}: no image to write into shards (first: {bad[0][1] if bad else 'none'})")
        writer.done()
        writer.merge()
        about = {
            "version": _VERSION,
            "size": size,
            "quality": quality,
            "image_ids": [int(image_id) for image_id in records.image_ids],
            "bad": bad,
            "shards": [
                [shard["filename"], shard["chunk_bytes"], shard["chunk_size"]]
                for shard in json.loads((partial / "index.json").read_text(encoding="utf-8"))["chunks"]
            ],
        }
        (partial / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(f"{folder}: shards cannot be written ({error})") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return about


def _encode(image: np.ndarray, quality: int | None) -> bytes:
    if quality is None:
        return image.tobytes()
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def read_about(place: str) -> dict[str, Any]:
    """Read and check ``fastcap.json`` of a split's shards, and that local shards are whole.

    Raises:
        DataError: Naming the place and the field, when something is missing or not as written.
    """
    if is_remote(place):
        load_litdata()
        from litdata.streaming.downloader import get_downloader

        with tempfile.TemporaryDirectory() as folder:
            try:
                get_downloader(place, folder, []).download_file(f"{place.rstrip('/')}/{ABOUT}", f"{folder}/{ABOUT}")
                text = (Path(folder) / ABOUT).read_text(encoding="utf-8")
            except Exception as error:  # each store's client raises its own kinds
                raise DataError(f"{place}/{ABOUT}: cannot be fetched ({type(error).__name__}: {error})") from error
    else:
        try:
            text = (Path(place) / ABOUT).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{place}: no shards here ({error})") from error
    try:
        about = json.loads(text)
        if about["version"] != _VERSION:
            raise DataError(f"{place}/{ABOUT}: version is {about['version']!r}, this FastCap reads {_VERSION}")
        ids, bad = [int(i) for i in about["image_ids"]], {int(position): str(why) for position, why in about["bad"]}
        shards = [(str(name), int(size), int(count)) for name, size, count in about["shards"]]
        counts = len(ids) - len(bad) == sum(count for *_, count in shards)
        if not counts or not all(0 <= position < len(ids) for position in bad):
            raise ValueError("image_ids, bad and shards do not add up")
        about |= {"image_ids": ids, "bad": bad, "shards": shards, "size": int(about["size"])}
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{place}/{ABOUT}: not as it was written ({type(error).__name__}: {error})") from error
    for name, size, _ in [] if is_remote(place) else shards:
        path = Path(place) / name
        if not path.is_file() or path.stat().st_size != size:
            raise DataError(f"{path}: shard is missing or cut short; delete {place} to have it written anew")
    return dict(about)


class ShardReader:
    """Reads single images out of shards, in any order; every process opens them for itself.

    Args:
        place: Folder or address of a split's shards.
        about: What ``read_about`` returned.
        cache_dir: Where shards of an object store are kept.
    """

    def __init__(self, place: str, about: dict[str, Any], cache_dir: str | os.PathLike[str]) -> None:
        self.place, self.size, self.quality = place, about["size"], about["quality"]
        self.cache_dir = os.fspath(cache_dir)
        self._opened: tuple[int, Any] | None = None

    def read(self, item: int, image_id: int) -> np.ndarray:
        """Return one image.

        Args:
            item: Its number in the shards.
            image_id: The id that it must have.

        Returns:
            RGB pixels, uint8. (S, S, 3)

        Raises:
            DataError: Naming the place and the image, when it cannot be read.
        """
        where = f"{self.place}: image id {image_id}"
        try:
            found = self._dataset()[item]
            found_id, content = found["id"], bytes(found["pixels"])  # a copy: the shard may be closed next
        except Exception as error:  # litdata and each store's client raise their own kinds
            raise DataError(f"{where} cannot be read from its shard ({type(error).__name__}: {error})") from error
        if found_id != image_id:
            raise DataError(f"{where}: item {item} of the shards is image id {found_id}")
        if self.quality is not None:
            return decode_image(content, self.size, where)
        if len(content) != 3 * self.size**2:
            raise DataError(f"{where}: {len(content)} bytes in its shard instead of {3 * self.size**2}")
        return np.frombuffer(content, np.uint8).reshape(self.size, self.size, 3)

    def _dataset(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            make: Callable[..., Any] = load_litdata().StreamingDataset
            place = self.place if is_remote(self.place) else os.path.abspath(self.place)
            # One item at a time: the default decodes 256 neighbours, which another order throws away.
            dataset = make(place, cache_dir=self.cache_dir, batch_decode=0, max_cache_size=_KEEP_ALL)
            dataset[0:0]  # a slice, be it empty, has whole shards fetched and kept, instead of two requests an image
            self._opened = (os.getpid(), dataset)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out of a pickle."""
        return self.__dict__ | {"_opened": None}
