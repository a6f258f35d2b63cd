"""The site builds without a warning, and needs no net to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from benchmarks.browser import browser, missing, resize
from tools.pages import ROOT

pytest.importorskip("material", reason="the documentation is not installed: pip install 'distree[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)", text)
        fetched += re.findall(
            r"<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*?\bhref=[\"']?([^\"' >]+)", text
        )
        assert fetched
        assert not [address for address in fetched if re.match(r"(https?:)?//", address)], page.name


@pytest.fixture(scope="module")
def chromium():
    if absent := missing():
        pytest.skip(absent)
    with browser() as driver:
        yield driver


def test_search_works_in_pages_opened_from_disk(site, chromium):
    chromium.get((site / "howto" / "simulate.html").as_uri())
    found = chromium.execute_async_script(
        """
        const [done] = arguments, query = document.querySelector("[data-md-component=search-query]")
        const toggle = document.querySelector("[data-md-toggle=search]")
        toggle.checked = true
        toggle.dispatchEvent(new Event("change"))
        query.focus()
        query.value = "deadline_ms"
        const look = () => {
          query.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
          const links = [...document.querySelectorAll("a.md-search-result__link")].map((link) => link.href)
          links.length ? done(links) : setTimeout(look, 100)
        }
        look()
        """
    )
    assert any("reference/configuration.html" in link for link in found)


@pytest.mark.parametrize("page", ["configuration", "topics", "payloads", "commands"])
def test_a_phone_shows_what_names_mean(site, chromium, page):
    resize(chromium, 390, 844, mobile=True)
    chromium.get((site / "reference" / f"{page}.html").as_uri())
    right = chromium.execute_script(
        "return [...document.querySelectorAll('article tbody td:last-child')].map((cell) => {"
        " const range = document.createRange(); range.selectNodeContents(cell);"
        " return range.getBoundingClientRect().right })"
    )
    assert len(right) > 15
    assert max(right) <= 390


def test_what_readers_are_not_to_see_is_not_shown(site):
    text = (site / "tutorial" / "chain.html").read_text(encoding="utf-8")
    shown = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert "distree demo" in re.sub(r"<[^>]+>", "", shown)
    assert "terminal broker" not in shown
