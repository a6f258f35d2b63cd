"""The site builds without a warning, and needs no net to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

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


def test_what_readers_are_not_to_see_is_not_shown(site):
    text = (site / "tutorial" / "chain.html").read_text(encoding="utf-8")
    shown = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert "distree demo" in re.sub(r"<[^>]+>", "", shown)
    assert "terminal broker" not in shown
