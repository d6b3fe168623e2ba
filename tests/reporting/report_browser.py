"""Open a page in headless Chromium without a network, and say what a reader would see."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CATCH = """<head><script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => problems.push("blocked " + event.blockedURI));
</script>"""
PROBE = """<script>
addEventListener("load", async () => {
  const pause = ms => new Promise(done => setTimeout(done, ms));
  await pause(300);
  const plots = () => [...document.querySelectorAll(".plot")].filter(box => box.offsetParent).map(box => ({
    svgs: box.querySelectorAll("svg.main-svg").length,
    marks: box.querySelectorAll(".scatterlayer .js-line, .barlayer .point path").length,
    width: box.clientWidth, texts: box.textContent,
  }));
  const found = {
    images: [...document.images].map(image => image.naturalWidth), plots: plots(), problems,
    resources: performance.getEntriesByType("resource").map(entry => entry.name).filter(n => !n.startsWith("data:")),
    hacked: window.hacked ?? null, overflow: document.documentElement.scrollWidth - innerWidth,
    text: document.body.innerText,
  };
  ACTION
  const pre = document.createElement("pre");
  pre.id = "probe"; pre.textContent = JSON.stringify(found);
  document.body.append(pre);
});
</script></body>"""


def open_page(page, action=""):
    """Return what a probe inside a copy of the page saw; ``action`` is JavaScript that may add to ``found``."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (apt install chromium)")
    source = page.read_text(encoding="utf-8")
    assert source.count("<head>") == 1 and source.count("</body>") == 1
    copy = page.with_name("probed.html")
    copy.write_text(
        source.replace("<head>", CATCH).replace("</body>", PROBE.replace("ACTION", action)), encoding="utf-8"
    )
    options = ["--headless", "--disable-gpu", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")
    done = subprocess.run(
        [
            browser,
            *options,
            f"--user-data-dir={page.parent / 'browser'}",
            "--window-size=1366,900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe, done.stderr[-2000:]
    return json.loads(html.unescape(probe.group(1)))


class _Links(HTMLParser):
    """Collects every attribute that a browser would load something from, and style sheets."""

    def __init__(self):
        super().__init__()
        self.found, self.tags, self.style = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")
        ]
        self.style += " ".join(value or "" for name, value in attributes if name == "style")

    def handle_data(self, data):
        if self.tags[-1:] == ["style"]:
            self.style += data


def assert_offline(page):
    """The page names nothing outside itself to load, and forbids it besides."""
    links = _Links()
    links.feed(page.read_text(encoding="utf-8"))
    assert [link for link in links.found if not link.startswith("data:")] == []
    assert "url(" not in links.style and "@import" not in links.style
    assert "link" not in links.tags and "iframe" not in links.tags
    assert "default-src 'none'" in page.read_text(encoding="utf-8")
