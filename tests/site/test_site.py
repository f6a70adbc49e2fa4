"""The site in a real browser, Debian's Chromium: ``make docs-test``.

Each page at the width of a phone and of a desk. Pictures of all are left in build/site-pictures,
to be looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from layers import ROOT

pytestmark = pytest.mark.site

SITE = ROOT / "build" / "site"
PICTURES = ROOT / "build" / "site-pictures"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("**/*.html"))
#: Source files have lines of code of any length, which scroll in their own box.
WRITTEN = [page for page in PAGES if not page.startswith("source/")]
WIDTHS = (390, 1280)
#: Text smaller than this is hard to read on a phone, in CSS pixels.
SMALLEST = 9.0

WIDTH = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
#: The address of each picture, the width at which it is shown, and its own; 0 if it did not load.
IMAGES = "() => [...document.images].map(each => [each.src, each.width, each.naturalWidth])"

#: The smallest text of a picture and its width, in its own units, and the texts that leave it.
TEXTS = """
() => {
  const svg = document.documentElement, width = svg.viewBox.baseVal.width;
  const frame = svg.getBoundingClientRect(), scale = frame.width / width;
  let smallest = 99, outside = [];
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    smallest = Math.min(smallest, parseFloat(getComputedStyle(text).fontSize));
    if (box.left < frame.left - scale || box.right > frame.right + scale
        || box.top < frame.top - scale || box.bottom > frame.bottom + scale)
      outside.push(text.textContent);
  }
  return [smallest, width, outside];
}
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site on a local port."""
    if not PAGES:
        pytest.fail("there is no site; run make docs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Opened:
    """A page in the browser, with what it complained of and what it asked others for."""

    def __init__(self, browser: Any, address: str, page: str, width: int, scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme
        )
        self.tab = self.context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.tab.on("console", self._on_console)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.errors.append(request.url))
        self.context.route("**", lambda route: self._on_request(route, address))
        self.tab.goto(address + page, wait_until="load")

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _on_request(self, route: Any, address: str) -> None:
        if route.request.url.startswith((address, "data:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        picture = self.tab.screenshot(full_page=True)  # with a path it would keep a thread
        (PICTURES / f"{name}.png").write_bytes(picture)


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    opened: list[Opened] = []

    def open_page(page: str, width: int, scheme: str = "light") -> Opened:
        opened.append(Opened(browser, address, page, width, scheme))
        return opened[-1]

    yield open_page
    for each in opened:
        each.context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", WRITTEN)
def test_a_page(open_page: Any, page: str, width: int) -> None:
    """It fits, complains of nothing, asks nothing of others, and shows all of its pictures."""
    opened = open_page(page, width)
    opened.picture(f"{page.removesuffix('.html')}-{width}")
    wide, shown = opened.tab.evaluate(WIDTH)
    assert wide <= shown
    assert opened.errors == []
    assert opened.outside == []
    assert [src for src, _, own in opened.tab.evaluate(IMAGES) if own == 0] == []


@pytest.mark.parametrize("page", [each for each in PAGES if each not in WRITTEN][:3])
def test_a_source_page(open_page: Any, page: str) -> None:
    opened = open_page(page, 390)
    wide, shown = opened.tab.evaluate(WIDTH)
    assert (wide <= shown, opened.errors, opened.outside) == (True, [], [])


@pytest.mark.parametrize("page", [each for each in WRITTEN if ".svg" in (SITE / each).read_text()])
def test_pictures_are_read_on_a_phone(open_page: Any, address: str, page: str) -> None:
    shown = open_page(page, 390).tab.evaluate(IMAGES)
    for src, on_screen, _ in shown:
        if src.endswith(".svg"):
            picture = open_page(src.removeprefix(address), 390).tab
            smallest, width, outside = picture.evaluate(TEXTS)
            assert smallest * on_screen / width >= SMALLEST, src
            assert outside == [], src


@pytest.mark.parametrize("word", ["drain_timeout", "half-close"])
def test_search_needs_no_network(open_page: Any, word: str) -> None:
    opened = open_page(f"search.html?q={word}", 390)
    opened.tab.wait_for_selector("#search-results li a", timeout=10_000)
    assert opened.outside == []


def test_dark(open_page: Any) -> None:
    """Pictures of some pages, to be looked at."""
    for page in ("start.html", "nine-steps.html", "engines.html", "benchmarks.html"):
        for width in WIDTHS:
            opened = open_page(page, width, "dark")
            opened.picture(f"{page.removesuffix('.html')}-{width}-dark")
            assert opened.errors == []


def test_a_link_to_a_definition_leads_to_its_line(open_page: Any) -> None:
    opened = open_page("nine-steps.html", 1280)
    opened.tab.click("text=listener.pyx: _bind", timeout=5000)
    opened.tab.wait_for_load_state()
    line = opened.tab.url.partition("#")[2]
    assert "int _bind(" in opened.tab.inner_text(f"#{line}")


def test_there_are_pages() -> None:
    assert len(WRITTEN) > 20
    assert Path(SITE / "searchindex.js").exists()
