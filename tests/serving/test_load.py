"""A thousand requests at eight at a time, and a schema-driven fuzz: none lost, no 5xx, memory flat."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.http_server import bomb, demo, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
AT_A_TIME = 8
MAX_GROWTH = 40_000_000  # bytes


def _resident(process):
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text()).group(1))


def test_a_thousand_requests_at_eight_at_a_time(tiny_checkpoint, tmp_path):
    colours = [(red, 255 - red, (7 * red) % 256) for red in range(0, 250, 10)]
    kinds = ("JPEG", "PNG", "WEBP")
    files = [picture(kind, (640, 480), colour) for colour in colours for kind in kinds]
    bad = [(b"text", 415), (bomb(), 413), (bytes(1_500_000), 413), (files[1][:200], 422)]
    local = threading.local()

    with demo(tiny_checkpoint, tmp_path, "--max-megabytes", "1") as (address, process):

        def ask(data, steps=None):
            local.session = getattr(local, "session", None) or requests.Session()
            return local.session.post(
                f"{address}/api/caption",
                params={"num_steps": steps, "record_steps": "true"},
                files={"image": ("photo", data)},
                timeout=600,
            )

        expected = [ask(data, 2).json()["caption"] for data in files]

        def one(number):
            if number % 11 == 10:
                data, status = bad[number // 11 % len(bad)]
                return ask(data).status_code == status
            at = number % len(files)
            response = ask(files[at], 2)
            return response.status_code == 200 and response.json()["caption"] == expected[at]

        with ThreadPoolExecutor(AT_A_TIME) as pool:
            warm = list(pool.map(one, range(220)))
            before = _resident(process)
            outcomes = list(pool.map(one, range(1100)))
        after = _resident(process)
        health = requests.get(f"{address}/health", timeout=60).json()
    assert Counter(warm + outcomes) == {True: 1320}
    assert health == {"status": "ok", "captions": len(files) + 1200, "waiting": 0}
    print(f"resident before {before / 1e6:.0f} MB, after {after / 1e6:.0f} MB")
    assert after - before < MAX_GROWTH, (before, after)


@st.composite
def damaged_pictures(draw):
    """A picture's file with some bytes changed, cut short or doubled."""
    kind = draw(st.sampled_from(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")))
    data = bytearray(picture(kind, draw(st.sampled_from(((1, 1), (16, 16), (33, 7))))))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def test_a_fuzz_from_the_openapi_description_finds_no_5xx(tiny_checkpoint, tmp_path):
    import schemathesis
    from schemathesis.checks import not_a_server_error

    pictures = st.one_of(st.binary(max_size=2000), damaged_pictures())
    schemathesis.openapi.format("binary", pictures)
    for kind in ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"):
        schemathesis.openapi.media_type(kind, pictures)
    schemathesis.openapi.media_type("application/octet-stream", pictures)
    answers = Counter()
    with demo(tiny_checkpoint, tmp_path) as (address, _):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()
            modes = list(schemathesis.GenerationMode)
            if operation.method == "get":  # takes nothing that could be wrong
                modes = [schemathesis.GenerationMode.POSITIVE]
            for mode in modes:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=400 if operation.method == "post" else 20,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                def run(case):
                    response = case.call(timeout=600)
                    case.validate_response(response, checks=[not_a_server_error])
                    answers[case.operation.path, response.status_code] += 1

                run()
    print(answers)
    assert {path for path, _ in answers} == {"/api/caption", "/api/model", "/health"}
    assert answers["/api/caption", 200] > 20 and answers["/api/caption", 415] > 20
    assert max(status for _, status in answers) < 500
