"""Captions as bytes: torchmetrics can gather tensors over processes, not strings."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Record(NamedTuple):
    """One image's caption and references, raw.

    Attributes:
        image_id: The image's id in its data set.
        caption: The generated caption.
        references: Its reference captions, at least one.
    """

    image_id: int
    caption: str
    references: tuple[str, ...]


def encode(records: Iterable[Record]) -> Tensor:
    """Write records as one line of JSON each. JSON escapes line ends and all that is not ASCII, so lines never break.

    Args:
        records: The records.

    Returns:
        Bytes on the CPU, uint8. (B)
    """
    text = "".join(json.dumps(record) + "\n" for record in records)
    return torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8) if text else empty()


def empty() -> Tensor:
    """Encode no records.

    Returns:
        uint8. (0)
    """
    return torch.zeros(0, dtype=torch.uint8)


def decode(chunks: Sequence[Tensor]) -> list[Record]:
    """Read encoded records back, each image once and in the order of the ids.

    The order makes sums independent of how images were spread over processes; the first record of an image wins, so
    what a sampler repeats to fill up the last batch counts once.

    Args:
        chunks: Encoded records, on any device. (B) each

    Returns:
        One record for each image, by ascending id.
    """
    text = b"".join(chunk.cpu().numpy().tobytes() for chunk in chunks).decode("ascii")
    found: dict[int, Record] = {}
    for line in text.splitlines():
        image_id, caption, references = json.loads(line)
        found.setdefault(image_id, Record(image_id, caption, tuple(references)))
    return [found[image_id] for image_id in sorted(found)]
