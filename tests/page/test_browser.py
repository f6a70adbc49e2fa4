"""Pages in a real browser, Debian's Chromium: ``make page-test``.

Pictures of each are left in build/page, to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documents
import pytest
from chromium import chromium
from documents import Document, failed, judged, staged, with_latencies
from layers import ROOT

from fastsock.client import compare
from fastsock.client.saved import Saved
from fastsock.page import comparison, page

pytestmark = pytest.mark.browser

PICTURES = ROOT / "build" / "page"
#: Text smaller than this is hard to read on a phone, in CSS pixels.
SMALLEST = 9.0

#: The smallest text of the shown pictures, and the texts that leave their picture.
TEXTS = """
() => {
  let smallest = 99, outside = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const size = parseFloat(getComputedStyle(text).fontSize) * frame.width
        / svg.viewBox.baseVal.width;
      smallest = Math.min(smallest, size);
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) outside.push(text.textContent);
    }
  }
  return [smallest, outside];
}
"""
SIZES = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
#: Contrast of the text of pictures and page with the background (WCAG 2), the lowest one.
CONTRAST = """
() => {
  const light = color => {
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map(each => each / 255)
      .map(each => each <= .03928 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4);
    return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const all = [...document.querySelectorAll("svg text")].map(each => getComputedStyle(each).fill)
    .concat([...document.querySelectorAll("p, td, th, dt, dd, strong, h1, h2, summary, li")]
      .map(each => getComputedStyle(each).color));
  return Math.min(...all.map(light).map(each =>
    (Math.max(each, ground) + .05) / (Math.min(each, ground) + .05)));
}
"""


def pages() -> dict[str, list[Document]]:
    runs = documents.real_runs()
    opened = judged(runs["open"])
    others = [{**judged(runs["closed"]), "label": f"closed loop, {n}"} for n in range(6)]
    return {
        "stages": [staged(opened)],
        "failed": [failed(opened)],
        "open": [opened],
        "closed": [judged(runs["closed"])],
        "sent": [runs["sent"]],
        "refused": [runs["refused"]],
        "several": [staged(opened), failed(opened), runs["sent"], *others],
        "stall": [with_latencies(opened, [50_000] * 5000 + [301_000_000] * 20)],
        "long names": [{**staged(opened), "label": "x" * 200, "endpoint": f"unix:///{'y' * 90}"}],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, given in pages().items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(page.of(page.runs_of([Saved("run.json", tuple(given))])))
    found["comparison"] = folder / "comparison.html"
    found["comparison"].write_text(compared())
    return found


def compared() -> str:
    """The page of five runs before and five after, of which one is not valid."""
    opened = judged(documents.real_runs()["open"])
    slow = [with_latencies(opened, [at * 20_000_000] * 2000) for at in range(5, 10)]
    slow[3] = judged(slow[3], "the client was away")
    sides = [Saved("before.json", (opened,) * 5), Saved("after.json", tuple(slow))]
    targets = [compare.Target.parse(each) for each in ("p99<+5%", "rate>-5%")]
    return comparison.of(compare.compare(*map(compare.Side.of, sides), targets), sides)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "light"),
        (390, "light"),
        (390, "dark"),
        (768, "dark"),
        (1280, "light"),
        (1280, "dark"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "stages",
        "failed",
        "open",
        "closed",
        "sent",
        "refused",
        "several",
        "stall",
        "long names",
        "comparison",
    ],
)
def test_a_page(browser: Any, files: dict[str, Path], name: str, width: int, scheme: str) -> None:
    """It stands alone, fits the screen, and can be read."""
    told: list[str] = []
    asked: list[str] = []
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        shown.on("console", lambda message: told.append(message.text))
        shown.on("pageerror", lambda error: told.append(str(error)))

        def answer(route: Any) -> None:
            asked.append(route.request.url)
            route.continue_() if route.request.url == files[name].as_uri() else route.abort()

        shown.route("**/*", answer)
        shown.goto(files[name].as_uri())
        PICTURES.mkdir(parents=True, exist_ok=True)
        picture = PICTURES / f"{name}-{width}-{scheme}.png"
        picture.write_bytes(shown.screenshot(full_page=True))  # with a path it would keep a thread
        for closed in (True, False):
            full, seen = shown.evaluate(SIZES)
            assert full <= seen
            smallest, outside = shown.evaluate(TEXTS)
            assert smallest >= SMALLEST * min(width / 390, 1)
            assert outside == []
            assert shown.evaluate(CONTRAST) >= 4.5
            if closed:
                shown.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        picture.with_suffix(".open.png").write_bytes(shown.screenshot(full_page=True))
        visible = [each for each in shown.query_selector_all("svg") if each.is_visible()]
        named = shown.get_by_role("img").all()
        assert len(named) == len(visible)
        assert all(each.get_attribute("aria-label") for each in named)
        assert shown.query_selector("script") is None
        assert files[name].stat().st_size < 1_000_000
        assert asked == [files[name].as_uri()]
        assert told == []
    finally:
        shown.close()
