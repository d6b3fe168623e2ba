"""The model that FastCap brings along: its card, its hashes, and that what differs is refused."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from fastcap.build import load_checkpoint
from fastcap.pretrained import CARD, CONFIG, WEIGHTS, PretrainedError, read_weights, verified


@pytest.fixture
def shipped(tiny_checkpoint, tmp_path):
    """A folder as the shipped one, of the tiny captioner."""
    checkpoint = torch.load(tiny_checkpoint, weights_only=True)
    state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    halves = {n: v.half() if v.dtype == torch.float32 else v for n, v in state.items()}
    save_file({name: value.contiguous() for name, value in halves.items()}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(checkpoint["fastcap"]))
    content = {name: (tmp_path / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    rows = [f"| `{n}` | {len(data)} | {hashlib.sha256(data).hexdigest()} |" for n, data in content.items()]
    (tmp_path / CARD).write_text("\n".join(["# Card", "| file | size | SHA-256 |", "|---|---|---|", *rows, ""]))
    return tmp_path


def test_weights_come_back_as_a_checkpoint(shipped, tiny_checkpoint):
    ours, theirs = read_weights(shipped), torch.load(tiny_checkpoint, weights_only=True)
    assert ours["fastcap"] == theirs["fastcap"] and ours["state_dict"].keys() == theirs["state_dict"].keys()
    one, other = load_checkpoint(shipped / WEIGHTS).model, load_checkpoint(tiny_checkpoint).model
    assert {v.dtype for v in one.parameters()} == {torch.float32}
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert value.dtype == expected.dtype, name
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_what_is_not_as_the_card_says_is_refused(shipped, name):
    with (shipped / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(PretrainedError, match=r"its SHA-256 \w+\.\.\. is not the card's .*install FastCap again"):
        read_weights(shipped)
    (shipped / name).unlink()
    with pytest.raises(PretrainedError, match=f"{name}: missing from this installation"):
        verified(name, shipped)
