"""The page in headless Chromium: a picture in, the caption step by step out, and errors that a person can read."""

import json

import pytest

from tests.serving.browser import chromium
from tests.serving.http_server import bomb, demo, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WAIT = 120
STEPS = 2  # as tiny_checkpoint refines


@pytest.fixture(scope="module")
def address(tiny_checkpoint, tmp_path_factory):
    with demo(tiny_checkpoint, tmp_path_factory.mktemp("demo"), "--max-megabytes", "1") as (address, _):
        yield address


@pytest.fixture
def page(address, tmp_path):
    with chromium(tmp_path / "browser") as page:
        page.get(address)
        _until(page, "return document.getElementById('model').textContent.includes('parameters')")
        yield page


def _until(page, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, WAIT, poll_frequency=0.1).until(lambda _: page.execute_script(script))


def _upload(page, folder, name, data):
    (folder / name).write_bytes(data)
    page.find_element("id", "file").send_keys(str(folder / name))


def _quiet(page, *expected):
    """Nothing was loaded from elsewhere, and the console holds no complaint but those expected."""
    names = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    own = page.current_url
    assert names and all(name.startswith((own, "blob:" + own)) for name in names), names
    complaints = [entry["message"] for entry in page.get_log("browser")]
    assert all(any(part in text for part in expected) for text in complaints), complaints


def test_a_picture_is_captioned_and_the_slider_walks_through_the_steps(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("""
        window.seen = [];
        new MutationObserver(() => seen.push(document.getElementById("stage").textContent))
          .observe(document.getElementById("stage"), { childList: true });
    """)
    _upload(page, tmp_path, "photo.jpg", picture(size=(320, 200)))
    _until(page, f"return document.getElementById('stage').textContent === 'step {STEPS} of {STEPS}'")
    assert page.execute_script("return seen") == [f"step {step} of {STEPS}" for step in range(1, STEPS + 1)]
    assert page.find_element("id", "text").text
    assert not page.find_elements("css selector", "#words .masked"), "the last step masks nothing"

    page.find_element("id", "steps").send_keys(Keys.HOME)  # by keyboard
    _until(page, f"return document.getElementById('stage').textContent === 'step 1 of {STEPS}'")
    words = page.find_elements("css selector", "#words .word")
    assert 0 < len(page.find_elements("css selector", "#words .masked")) <= len(words)
    assert page.find_element("id", "experts").text.count("Expert") == 2
    assert "Decoding the image" in page.find_element("id", "times").text
    assert page.execute_script("return document.getElementById('preview').naturalWidth") == 320
    for width in (1280, 400):
        page.set_window_size(width, 900)
        assert page.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
    _quiet(page)


@pytest.mark.parametrize(
    ("name", "data", "parts", "status"),
    [
        ("notes.jpg", b"only text", ("notes.jpg", "no picture"), "415"),
        ("bomb.png", bomb(), ("bomb.png", "40 megapixels"), "413"),
        ("large.png", bytes(1_200_000), ("large.png", "1 MB"), None),  # not even sent
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(page, tmp_path, name, data, parts, status):
    _upload(page, tmp_path, name, data)
    _until(page, "return !document.getElementById('error').hidden")
    error = page.find_element("id", "error").text
    assert all(part in error for part in parts) and error.endswith(".") and "\n" not in error
    _quiet(page, *([f"status of {status}"] if status else []))
    _upload(page, tmp_path, "good.png", picture("PNG"))  # and the next one works
    _until(page, "return !document.getElementById('result').hidden && document.getElementById('error').hidden")


def test_names_and_captions_are_shown_as_text(page, tmp_path):
    name = "<img src=x onerror=window.hacked=1>.jpg"
    _upload(page, tmp_path, name, b"text")
    _until(page, "return !document.getElementById('error').hidden")
    assert name in page.find_element("id", "error").text
    answer = {
        "caption": "<b>x</b>",
        "confidence": 0.5,
        "expert_weights": None,
        "milliseconds": {},
        "steps": [{"words": ["<b>x</b>"], "confidence": [0.5], "remasked": [False]}],
    }
    page.execute_script(f"window.fetch = async () => new Response({json.dumps(json.dumps(answer))})")
    _upload(page, tmp_path, "photo.png", picture("PNG"))
    _until(page, "return document.querySelector('#words .word')?.firstChild.textContent === '<b>x</b>'")
    assert page.find_element("id", "text").text == "<b>x</b>"
    assert page.execute_script("return [window.hacked ?? null, document.querySelector('#result p b')]") == [None, None]
