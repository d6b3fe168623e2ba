"""The page in headless Chromium: a picture in, the caption step by step out, and errors that a person can read."""

import json

import pytest

from tests.serving.browser import chromium
from tests.serving.http_server import bomb, demo, picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WAIT = 120
STEPS = 5


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


def _error(page):
    _until(page, "return !document.getElementById('error').hidden")
    assert not page.find_element("id", "result").is_displayed()
    return page.find_element("id", "error").text


def _quiet(page, *expected):
    """Nothing was loaded from elsewhere, and the console holds no complaint but those expected."""
    names = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    own = page.current_url
    assert names and all(name.startswith((own, "blob:" + own)) for name in names), names
    complaints = [entry["message"] for entry in page.get_log("browser")]
    assert all(any(part in text for part in expected) for text in complaints), complaints


def test_a_picture_is_captioned_step_by_step(page, tmp_path):
    page.execute_script(
        f"const s = document.getElementById('steps'); s.value = {STEPS}; s.dispatchEvent(new Event('input'))"
    )
    # Every state of the words that the page passes through.
    page.execute_script("""
        window.seen = [];
        new MutationObserver(() => {
          const count = selector => document.querySelectorAll(selector).length;
          seen.push([count("#history li"), count("#words .masked"), count("#words .word")]);
        }).observe(document.getElementById("words"), { childList: true });
    """)
    _upload(page, tmp_path, "photo.jpg", picture(size=(320, 200)))
    _until(page, f"return document.querySelectorAll('#history li').length === {STEPS}")
    _until(page, "return !document.getElementById('stage').textContent.startsWith('step')")
    first, *rest = page.execute_script("return seen")
    assert first[1] == first[2] > 0  # nothing but masks
    assert [n for n in range(1, STEPS + 1) if n in {rows for rows, _, _ in rest}] == list(range(1, STEPS + 1))
    assert any(0 < masked < total for _, masked, total in rest)  # some masked again
    assert rest[-1][1] == 0

    caption = page.find_element("id", "text").get_attribute("textContent")
    words = page.execute_script("return [...document.querySelectorAll('#words .word')].map(w => w.textContent)")
    assert caption and " ".join(words) == caption
    colours = page.execute_script(
        "return [...document.querySelectorAll('#history .word:not(.masked)')]"
        ".map(w => [parseInt(w.nextSibling.textContent), getComputedStyle(w).backgroundColor])"
    )
    assert len({colour for _, colour in colours}) == len({share for share, _ in colours})  # confidence is colour
    assert page.find_element("id", "experts").text.count("Expert") == 2
    times = page.find_element("id", "times").text
    assert all(part in times for part in ("Decoding the image", "Encoder", "Decoder", "ms"))
    assert page.execute_script("return document.getElementById('preview').naturalWidth") == 320
    _quiet(page)


def test_the_number_of_steps_asks_again(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    _upload(page, tmp_path, "photo.png", picture("PNG"))
    _until(page, "return document.querySelectorAll('#history li').length > 1")
    control = page.find_element("id", "steps")
    control.send_keys(Keys.HOME)  # by keyboard
    _until(page, "return document.querySelectorAll('#history li').length === 1")
    assert page.find_element("id", "chosen").text == "1"


def test_a_step_is_chosen_by_keyboard(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    _upload(page, tmp_path, "photo.png", picture("PNG"))
    _until(page, "return document.querySelectorAll('#history li').length > 0")
    page.find_element("css selector", "#history button").send_keys(Keys.ENTER)
    _until(page, "return document.getElementById('stage').textContent.startsWith('step 1 of 4')")
    assert len(page.find_elements("css selector", "#history li")) == 4
    assert page.find_element("css selector", "#history [aria-current] .number").text == "1"


@pytest.mark.parametrize(
    ("name", "data", "parts", "status"),
    [
        ("notes.jpg", b"only text", ("notes.jpg", "no picture"), "415"),
        ("bomb.png", bomb(), ("bomb.png", "40 megapixels"), "413"),
        ("cut.png", picture("PNG", (300, 300))[:400], ("cut.png", "damaged"), "422"),
        ("large.png", bytes(1_200_000), ("large.png", "1 MB"), None),  # not even sent
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(page, tmp_path, name, data, parts, status):
    _upload(page, tmp_path, name, data)
    error = _error(page)
    assert all(part in error for part in parts) and error.endswith(".") and "\n" not in error
    _quiet(page, *([f"status of {status}"] if status else []))
    _upload(page, tmp_path, "good.png", picture("PNG"))  # and the next one works
    _until(page, "return !document.getElementById('result').hidden && document.getElementById('error').hidden")


def test_names_and_captions_are_shown_as_text(page, tmp_path):
    name = "<img src=x onerror=window.hacked=1>.jpg"
    _upload(page, tmp_path, name, b"text")
    assert name in _error(page)
    answer = {
        "caption": "<b>x</b>",
        "confidence": 0.5,
        "num_steps": 1,
        "expert_weights": None,
        "milliseconds": {},
        "steps": [{"words": ["<b>x</b>"], "confidence": [0.5], "remasked": [False]}],
    }
    page.execute_script(f"window.fetch = async () => new Response({json.dumps(json.dumps(answer))})")
    _upload(page, tmp_path, "photo.png", picture("PNG"))
    _until(page, "return document.querySelector('#words .word')?.textContent === '<b>x</b>'")
    found = page.execute_script("return [window.hacked, document.querySelectorAll('.answer b:not([id])').length]")
    assert found == [
        None,
        0,
    ]


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out_in_light_and_dark(page, tmp_path, width):
    page.set_window_size(width, 900)
    _upload(page, tmp_path, "photo.png", picture("PNG"))
    _until(page, "return document.querySelectorAll('#history li').length === 4")
    grounds = set()
    for _ in range(2):
        page.find_element("id", "theme").click()
        assert page.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
        grounds.add(page.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))
    assert len(grounds) == 2
