"""The HTTP API: answers, limits, and one clear sentence for each refusal."""

import asyncio
import io
import json
import socket
import sys
import threading
import time

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from fastcap.serving import demo as command
from fastcap.serving.captioner import Captioner
from fastcap.serving.web import Limits, create_app
from fastcap.serving.web.guard import Crowd, Guard
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


def test_a_form_and_a_raw_body_are_captioned_alike(client):
    form = _send(client, picture(), query="?num_steps=2&record_steps=true")
    raw = client.post(
        "/api/caption?num_steps=2&record_steps=true", content=picture(), headers={"content-type": "image/jpeg"}
    )
    for response in (form, raw):
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["caption"] == "a <b>red</b> 254" and answer["num_steps"] == 2
        assert len(answer["steps"]) == 2 and answer["steps"][0]["remasked"] == [False, False, True]
        assert answer["expert_weights"] == [0.25, 0.75]
        assert answer["milliseconds"].keys() == {"decode_image", "encode", "decode_caption", "queue"}


def test_steps_are_left_out_unless_asked_for(client):
    answer = _send(client, picture()).json()
    assert answer["steps"] is None and answer["num_steps"] == StandIn.num_steps


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_promised_format_is_read(client, kind):
    assert _send(client, picture(kind)).status_code == 200


def test_a_text_file_named_jpg_is_refused(client):
    _refused(_send(client, b"no picture at all", "notes.jpg"), 415, "notes.jpg", "no picture")


def test_other_formats_of_pillow_are_refused(client):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PPM")
    _refused(_send(client, buffer.getvalue(), "a.ppm"), 415, "a.ppm")


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


@pytest.mark.parametrize("steps", ["0", "33", "-1", "four", "1.5", "1e9", ""])
def test_a_wrong_number_of_steps_is_refused(client, steps):
    _refused(_send(client, picture(), query=f"?num_steps={steps}"), 422, "num_steps")


def test_steps_of_a_model_that_refines_nothing_are_refused(client, monkeypatch):
    monkeypatch.setattr(StandIn, "num_steps", None)
    _refused(_send(client, picture(), query="?num_steps=2"), 422, "word after word")


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


def test_a_name_is_one_line_and_not_endless(client):
    message = _send(client, b"text", "a\u2028b" + "c" * 500).json()["error"]
    assert message.startswith("a bccc") and len(message) < 250


def test_wrong_addresses_and_methods_are_refused(client):
    _refused(client.get("/nowhere"), 404, "/nowhere")
    _refused(client.get("/api/caption"), 405, "GET")
    _refused(client.get("/../app.py"), 404)


def test_a_failure_of_the_server_tells_no_secrets(client, monkeypatch):
    monkeypatch.setattr(StandIn, "caption", lambda *_, **__: 1 / 0)
    _refused(_send(client, picture()), 500, "log")


def test_health_counts_what_was_written(client):
    assert client.get("/health").json() == {"status": "ok", "captions": 0, "waiting": 0}
    _send(client, picture())
    _send(client, b"text")
    assert client.get("/health").json() == {"status": "ok", "captions": 1, "waiting": 0}


def test_the_openapi_description_names_what_there_is(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/api/caption", "/api/model", "/health"}
    post = described["paths"]["/api/caption"]["post"]
    assert {"multipart/form-data", "image/jpeg"} <= post["requestBody"]["content"].keys()
    assert {p["name"] for p in post["parameters"]} == {"num_steps", "record_steps"}
    assert {"200", "408", "413", "415", "422", "503"} <= post["responses"].keys()
    error = post["responses"]["422"]["content"]["application/json"]["schema"]
    assert error == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert client.get("/docs").status_code == 404  # FastAPI's own would load from elsewhere


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("", "style.css", "page.js", "icon.svg"):
        text = client.get(f"/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert text and "://" not in text and "innerHTML" not in text
    about = client.get("/api/model").json()
    assert about["model"] == StandIn.info and about["max_bytes"] == 200_000 and about["num_steps"] == 4


def test_other_sites_and_names_are_refused():
    with TestClient(create_app(StandIn(), hosts=["127.0.0.1"]), base_url="http://127.0.0.1:8000") as client:
        assert client.get("/health").status_code == 200
        assert client.post("/api/caption", files={"image": picture()}).status_code == 200
        _refused(client.get("/health", headers={"host": "evil.example:8000"}), 403)
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


def _through_guard(messages, limits):
    """Send ASGI messages to a guarded application that echoes its body; returns (status, answer, crowd)."""
    sent, crowd = [], Crowd()

    async def app(scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(Guard(app, limits, None, crowd)(scope, receive, send))
    return (sent[0]["status"], sent[1]["body"], crowd) if sent else (None, None, crowd)


def test_a_slow_upload_is_given_up():
    first = {"type": "http.request", "body": b"ab", "more_body": True}
    status, answer, crowd = _through_guard([first], Limits(upload_seconds=0.05))
    assert status == 408 and "0.05 seconds" in json.loads(answer)["error"] and crowd.waiting == 0


def test_a_client_that_goes_away_is_forgotten():
    first = {"type": "http.request", "body": b"ab", "more_body": True}
    status, _, crowd = _through_guard([first, {"type": "http.disconnect"}], Limits())
    assert status is None and crowd.waiting == 0


def test_an_upload_in_pieces_is_joined():
    pieces = [{"type": "http.request", "body": b, "more_body": b != b"e"} for b in (b"ab", b"cd", b"e")]
    assert _through_guard(pieces, Limits())[:2] == (200, b"abcde")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-megabytes", "0"], "--max-megabytes 0.0 must be more than 0"),
        (["--max-megapixels", "1000"], "--max-megapixels 1000 must be at most 89"),
        (["--port", "70000"], "--port 70000"),
        (["--threads", "0"], "--threads 0"),
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


def test_the_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as stop:
        command.main([])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "uvicorn" in error and ".[demo]" in error and error.count("\n") == 1


def test_only_a_server_for_this_machine_insists_on_its_names():
    assert "127.0.0.1" in command.own_names("127.0.0.1") and "localhost" in command.own_names("::1")
    assert command.own_names("0.0.0.0") is None and command.own_names("192.0.2.7") is None


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_export"])
def test_a_real_model_answers_as_its_captioner_does(model, request):
    model = request.getfixturevalue(model)
    captioner = Captioner.load(model[0] if isinstance(model, tuple) else model, num_threads=1)
    with TestClient(create_app(captioner)) as client:
        answer = _send(client, picture(), query="?num_steps=3&record_steps=true").json()
        about = client.get("/api/model").json()
    caption = captioner.caption(picture(), num_steps=3, record_steps=True)
    assert answer["caption"] == caption.text and answer["confidence"] == pytest.approx(caption.confidence)
    assert answer["steps"] == [vars(step) for step in caption.steps]
    assert len(answer["expert_weights"]) == 2 and sum(answer["expert_weights"]) == pytest.approx(1, abs=1e-5)
    assert all(answer["milliseconds"][part] > 0 for part in ("decode_image", "encode", "decode_caption"))
    assert about["model"] == captioner.info and about["num_steps"] == captioner.num_steps
