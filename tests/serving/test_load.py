"""Many requests at a time, and damaged pictures: none lost, no failure of the server, memory flat."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.serving.web import create_app
from tests.serving.http_server import StandIn, bomb, demo, picture

AT_A_TIME = 8
MAX_GROWTH = 40_000_000  # bytes


def _resident(process):
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text()).group(1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_requests_at_eight_at_a_time(tiny_checkpoint, tmp_path):
    import requests

    colours = [(red, 255 - red, (7 * red) % 256) for red in range(0, 250, 25)]
    files = [picture(kind, (640, 480), colour) for colour in colours for kind in ("JPEG", "PNG", "WEBP")]
    bad = [(b"text", 415), (bomb(), 413), (bytes(1_500_000), 413), (files[1][:200], 422)]
    local = threading.local()

    with demo(tiny_checkpoint, tmp_path, "--max-megabytes", "1") as (address, process):

        def ask(data):
            local.session = getattr(local, "session", None) or requests.Session()
            return local.session.post(f"{address}/api/caption", files={"image": ("photo", data)}, timeout=600)

        expected = [ask(data).json()["caption"] for data in files]

        def one(number):
            if number % 11 == 10:
                data, status = bad[number // 11 % len(bad)]
                return ask(data).status_code == status
            at = number % len(files)
            response = ask(files[at])
            return response.status_code == 200 and response.json()["caption"] == expected[at]

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            warm = list(pool.map(one, range(110)))
            before = _resident(process)
            outcomes = list(pool.map(one, range(330)))
        after = _resident(process)
        health = requests.get(f"{address}/health", timeout=60).json()
    assert Counter(warm + outcomes) == {True: 440}
    assert health == {"status": "ok", "captions": len(files) + 400, "waiting": 0}
    assert after - before < MAX_GROWTH, (before, after)


@st.composite
def damaged_pictures(draw):
    """A picture's file with some bytes changed, or cut short."""
    kind = draw(st.sampled_from(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")))
    data = bytearray(picture(kind, draw(st.sampled_from(((1, 1), (16, 16), (33, 7))))))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def test_no_damaged_picture_is_a_failure_of_the_server():
    seen = Counter()
    with TestClient(create_app(StandIn()), raise_server_exceptions=False) as client:

        @given(st.one_of(st.binary(max_size=2000), damaged_pictures()))
        @settings(max_examples=150, deadline=None, derandomize=True, database=None)
        def run(data):
            response = client.post("/api/caption", content=data, headers={"content-type": "image/jpeg"})
            seen[response.status_code] += 1

        run()
    assert {200, 415} <= set(seen) <= {200, 413, 415, 422}, seen
