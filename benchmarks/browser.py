"""Headless Chromium, as it is installed, for what is measured and tested in a page."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

# Chromium started like this asks nobody for anything; as root it has no sandbox.
_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-precise-memory-info",
)  # fmt: skip


def missing() -> str | None:
    """Return what has to be installed before `browser` works; None if nothing has."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed: pip install selenium"
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return "Chromium is not installed: apt install chromium chromium-driver"
    return None


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Give a selenium driver of a window that shows `width` x `height` pixels of a page."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_script_timeout(120)
        resize(driver, width, height)
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int, *, mobile: bool = False, scale: float = 1) -> None:
    """Have the page laid out for `width` x `height` pixels, as a phone does it if `mobile`."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(driver: Any, scheme: str) -> None:
    """Say that the user prefers `light` or `dark`."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def log_in(driver: Any, url: str, user: str = "", password: str = "") -> None:
    """Open the dashboard at `url` and connect to its first broker."""
    driver.get(url)
    for name, value in (("user", user), ("password", password)):
        field = driver.find_element("id", name)
        field.clear()
        field.send_keys(value)
    driver.find_element("css selector", "#form button").click()


def memory(driver: Any) -> tuple[int, int]:
    """Return the bytes of the page's heap after a collection, and how many nodes its document has."""
    for _ in range(3):
        driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    used = driver.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"]
    nodes: int = driver.execute_script("return document.getElementsByTagName('*').length")
    return int(used), nodes
