"""Read an offline W&B run back: LevelDB's log framing around protocol buffers."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


@dataclass
class OfflineRun:
    """What an offline run holds."""

    folder: Path
    run: object = None
    history: list = field(default_factory=list)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None

    @property
    def keys(self):
        return {key for row in self.history for key in row}


def _payloads(data):
    """Yield each record; a long one is spread over fragments: 1 whole, 2 first, 3 middle, 4 last."""
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield parts
            parts = b""


def _row(items):
    """Items as a dictionary; a nested key is a path into it."""
    row = {}
    for item in items:
        *path, leaf = item.nested_key or [item.key]
        node = row
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = json.loads(item.value_json)
    return row


def read_run(folder, patience=20.0):
    """Read the .wandb file of an offline run's folder; W&B's service may write its end a moment after ``finish``."""
    deadline = time.monotonic() + patience
    while (run := _parse(folder)).exit_code is None:
        assert time.monotonic() < deadline, f"{folder}: the run has no end"
        time.sleep(0.05)
    return run


def _parse(folder):
    (file,) = Path(folder).glob("*.wandb")
    data = file.read_bytes()
    assert data[:4] in (b":W&B", b"")
    result = OfflineRun(Path(folder))
    for payload in _payloads(data):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result.run = record.run
        elif kind == "history":
            result.history.append(_row(record.history.item))
        elif kind == "artifact":
            result.artifacts.append(record.artifact)
        elif kind == "exit":
            result.exit_code = record.exit.exit_code
    return result


def read_runs(run_dir):
    """Read every offline run below a FastCap run's folder, oldest first."""
    folders = sorted((Path(run_dir) / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime)
    return [read_run(folder) for folder in folders]
