"""The HTTP API: answers, limits, and one clear sentence for each refusal."""

import asyncio
import json
import socket
import threading
import time
from collections import Counter

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcap.serving import demo as command
from fastcap.serving.captioner import Captioner
from fastcap.serving.web import Limits, create_app
from tests.serving.http_server import StandIn, bomb, picture


@pytest.fixture
def client():
    with TestClient(create_app(StandIn(), Limits(max_bytes=200_000)), raise_server_exceptions=False) as client:
        yield client


def _send(client, data, name="photo.jpg", query="", field="image"):
    return client.post(f"/api/caption{query}", files={field: (name, data)})


def _refused(response, status, *parts):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    message = response.json()["error"]
    assert message.endswith(".") and "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("kind", ["image/jpeg", "image/jpg", "image/pjpeg", "application/octet-stream", None])
def test_a_form_and_a_raw_body_are_captioned_alike(client, kind):
    query = "?record_steps=true"
    if kind is None:
        response = _send(client, picture(), query=query)
    else:
        response = client.post(f"/api/caption{query}", content=picture(), headers={"content-type": kind})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["caption"] == "a <b>red</b> 254" and answer["expert_weights"] == [0.25, 0.75]
    assert [step["remasked"][2] for step in answer["steps"]] == [True, False, False, False]
    assert answer["milliseconds"].keys() == {"decode_image", "caption", "queue"}


def test_a_text_file_named_jpg_is_refused(client):
    _refused(_send(client, b"no picture at all", "notes.jpg"), 415, "notes.jpg", "no picture")


@pytest.mark.parametrize("side", [6_500, 30_000])  # below and above what Pillow itself refuses
def test_a_decompression_bomb_is_refused_before_it_is_decoded(client, side, monkeypatch):
    monkeypatch.setattr(StandIn, "caption", lambda *_, **__: pytest.fail("it was decoded"))
    trap = bomb(side)
    assert len(trap) < 100_000
    _refused(_send(client, trap, "bomb.png"), 413, "bomb.png", "40 megapixels")


def test_a_damaged_picture_is_refused(client):
    whole = picture("PNG", (300, 300))
    _refused(_send(client, whole[: len(whole) // 2], "cut.png"), 422, "cut.png", "damaged")


@pytest.mark.parametrize("size", [250_000, 3_000_000])  # read to its end, and given up at once
def test_a_large_upload_is_refused(client, size):
    _refused(_send(client, bytes(size)), 413, "0.2 MB")


def test_a_large_upload_of_unknown_length_is_refused(client):
    chunks = (bytes(50_000) for _ in range(1000))
    response = client.post("/api/caption", content=chunks, headers={"content-type": "image/png"})
    _refused(response, 413, "0.2 MB")


def test_what_is_no_picture_by_its_type_is_told_the_types(client):
    response = client.post("/api/caption", content=b"text", headers={"content-type": "text/plain"})
    _refused(response, 415, "multipart/form-data", "image/jpeg", "image/webp", "octet-stream")
    response = client.post("/api/caption", content=b"ftypheic", headers={"content-type": "image/heic"})
    _refused(response, 415, "image/jpeg", "image/tiff")


def test_forms_that_cannot_be_used_are_refused(client):
    _refused(_send(client, picture(), field="photo"), 422, "photo", "no such field")
    _refused(client.post("/api/caption", data={"image": "text"}, files={}), 415, "multipart/form-data")
    two = [("image", ("a.jpg", picture())), ("image", ("b.jpg", picture()))]
    _refused(client.post("/api/caption", files=two), 422, "one file")
    _refused(_send(client, b""), 422, "empty")
    _refused(client.post("/api/caption"), 415, "multipart/form-data")
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=é; charset=zz",
    ):
        headers = {"content-type": kind.encode()}
        response = client.post("/api/caption", content=b"--y\r\nContent-Disposition: nothing\r\n\r\n", headers=headers)
        assert response.status_code in (400, 422), (kind, response.text)


def test_wrong_addresses_and_methods_are_refused(client):
    _refused(client.get("/nowhere"), 404, "/nowhere")
    _refused(client.get("/api/caption"), 405, "GET")
    _refused(client.get("/../app.py"), 404)


def test_health_counts_what_was_written(client):
    assert client.get("/health").json() == {"status": "ok", "captions": 0, "waiting": 0}
    _send(client, picture())
    _send(client, b"text")
    assert client.head("/health").status_code == client.head("/").status_code == 200
    assert client.get("/health").json() == {"status": "ok", "captions": 1, "waiting": 0}


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("", "static/style.css", "static/page.js", "static/icon.svg"):
        text = client.get(f"/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert text and "://" not in text and "innerHTML" not in text
    about = client.get("/api/model").json()
    assert about["model"] == StandIn.info and about["max_bytes"] == 200_000


def test_other_sites_and_names_are_refused():
    hosts = command.allowed_hosts("127.0.0.1", ["captions.example.org", "*.example.net"])
    with TestClient(create_app(StandIn(), hosts=hosts), base_url="http://127.0.0.1:8000") as client:
        for name in ("127.0.0.1:8000", "localhost", "[::1]:80", "Captions.example.org", "a.example.net:8000"):
            assert client.get("/health", headers={"host": name}).status_code == 200, name
        for name in ("evil.example:8000", "example.org", ""):
            refused = client.get("/health", headers={"host": name})
            _refused(refused, 400, f"not called {name!r}")
            assert refused.headers["x-content-type-options"] == "nosniff"
        assert client.post("/api/caption", files={"image": picture()}).status_code == 200
        for site in ("cross-site", "same-site"):
            headers = {"sec-fetch-site": site}
            _refused(client.post("/api/caption", files={"image": picture()}, headers=headers), 403, "own page")


def test_eight_at_a_time_are_answered_in_turn_and_a_crowd_is_turned_away():
    begun, go = threading.Event(), threading.Event()

    class Slow(StandIn):
        def caption(self, image, **options):
            begun.set()
            assert go.wait(60)
            return super().caption(image, **options)

    with TestClient(create_app(Slow(), Limits(max_waiting=8))) as client:
        answers = {}

        def send(number):
            answers[number] = _send(client, picture(colour=(number, 0, 0), kind="PNG"))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        while client.get("/health").json()["waiting"] < 8:
            time.sleep(0.01)
        crowded = _send(client, picture())
        _refused(crowded, 503, "8 pictures")
        assert crowded.headers["retry-after"] == "1"
        go.set()
        for thread in threads:
            thread.join(60)
        assert [answers[n].json()["caption"].split()[-1] for n in range(8)] == [str(n) for n in range(8)]
        assert client.get("/health").json() == {"status": "ok", "captions": 8, "waiting": 0}


def _upload(messages, limits):
    """Send ASGI messages to the application as a picture's upload; returns what it sends."""
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/caption", "query_string": b""}
    scope["headers"] = [(b"content-type", b"image/jpeg")]
    app = create_app(StandIn(), limits)
    asyncio.run(app(scope, receive, send))
    assert TestClient(app).get("/health").json()["waiting"] == 0
    return sent


def _parts(*pieces, more=False):
    last = len(pieces) - 1
    return [
        {"type": "http.request", "body": part, "more_body": more or number < last} for number, part in enumerate(pieces)
    ]


def test_a_slow_upload_is_given_up():
    head, body, *_ = _upload(_parts(b"ab", more=True), Limits(upload_seconds=0.05))
    assert head["status"] == 408 and "0.05 seconds" in json.loads(body["body"])["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-megabytes", "0"], "--max-megabytes 0.0 must be a number above 0"),
        (["--max-megabytes", "inf"], "--max-megabytes inf must be a number above 0"),
        (["--allowed-hosts", "a*.example"], "--allowed-hosts a*.example"),
        (["--host", "203.0.113.1", "--port", "0"], "--host 203.0.113.1"),
    ],
)
def test_the_command_names_the_mistake(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_taken_port_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        command.main(["--port", str(taken.getsockname()[1])])
    assert "in use" in capsys.readouterr().err


def test_only_a_server_for_this_machine_insists_on_its_names():
    assert command.allowed_hosts("0.0.0.0", []) == command.allowed_hosts("192.0.2.7", []) == ["*"]
    assert command.allowed_hosts("0.0.0.0", ["a.example"])[-1] == "a.example"


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
        @settings(max_examples=60, deadline=None, derandomize=True, database=None)
        def run(data):
            response = client.post("/api/caption", content=data, headers={"content-type": "image/jpeg"})
            seen[response.status_code] += 1

        run()
    assert {200, 415} <= set(seen) <= {200, 413, 415, 422}, seen


@pytest.mark.parametrize("model", ["tiny_checkpoint", pytest.param("tiny_export", marks=pytest.mark.slow)])
def test_a_real_model_answers_as_its_captioner_does(model, request):
    model = request.getfixturevalue(model)
    captioner = Captioner.load(model[0] if isinstance(model, tuple) else model, num_threads=1)
    with TestClient(create_app(captioner)) as client:
        answer = _send(client, picture(), query="?record_steps=true").json()
        about = client.get("/api/model").json()
    caption = captioner.caption(picture(), record_steps=True)
    assert answer["caption"] == caption.text and answer["confidence"] == pytest.approx(caption.confidence)
    assert answer["steps"] == [vars(step) for step in caption.steps]
    assert len(answer["expert_weights"]) == 2 and sum(answer["expert_weights"]) == pytest.approx(1, abs=1e-5)
    assert all(value > 0 for value in answer["milliseconds"].values()) and about["model"] == captioner.info
