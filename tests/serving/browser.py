"""Headless Chromium under Selenium, without a network."""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium(folder, *more_options):
    """Yield a WebDriver; skips where there is no Chromium with its driver."""
    from selenium import webdriver

    browser, driver = next(filter(None, map(shutil.which, NAMES)), None), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium with chromedriver on this machine (apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in ("--headless", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000", *more_options):
        options.add_argument(option)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_argument(f"--user-data-dir={folder}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        page.set_page_load_timeout(120)
        page.set_script_timeout(120)
        yield page
    finally:
        page.quit()
