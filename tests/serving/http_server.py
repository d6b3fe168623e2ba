"""What the tests of the page share: a stand-in captioner, pictures and traps, and a server as a process."""

import io
import os
import re
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from fastcap.data.pixels import decode_image
from fastcap.serving.captioner import Caption
from fastcap.types import RefinementStep


class StandIn:
    """Answers like a captioner, from the picture's mean colour; where the model itself is not what is tested."""

    num_steps = 4
    info = {"name": "stand-in", "kind": "checkpoint", "num_steps": 4}  # noqa: RUF012

    def caption(self, image, *, record_steps=False):
        red = int(decode_image(image, 16)[..., 0].mean())
        words = ["a", "<b>red</b>", str(red)]
        steps = [RefinementStep(words, [0.9, 0.5, 0.1], [False, False, step == 0]) for step in range(self.num_steps)]
        times = {"decode_image": 1.0, "caption": 3.0}
        return Caption(" ".join(words), 0.5, steps if record_steps else [], [0.25, 0.75], times)


def picture(kind="JPEG", size=(80, 60), colour="red", **options):
    """A picture's file, as bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side=30_000):
    """A PNG file of a few kilobytes that says it holds ``side`` x ``side`` pixels."""

    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    head = side.to_bytes(4) + side.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(3 * side + 1) * 100, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@contextmanager
def demo(model, folder, *options):
    """Run ``fastcap demo`` as a process; yields its address and process id."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fastcap.cli", "demo", "--model", str(model), "--port", "0", "--no-browser"]
    with (
        open(folder / "demo.log", "w") as log,
        subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=environment
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, (line, (folder / "demo.log").read_text())
            yield address.group(0), process.pid
            assert process.poll() is None, (folder / "demo.log").read_text()
        finally:
            process.terminate()
            process.wait(60)
