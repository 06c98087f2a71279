"""Every page of the book in a real browser: it draws, links lead somewhere, nothing is missing, nothing leaves home."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SOURCES = (
    "book/**/*",
    "notebooks/*.ipynb",
    "_config.yml",
    "_toc.yml",
    "CONTRIBUTING.md",
    "semiseg_book/*.py",
    "runs/*/*/run.json",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium ({', '.join(NAMES)}, or CHROMIUM=path)")


def pages() -> list[str]:
    """Every page of the table of contents, and the search."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [f"{file}.html" for file in (toc["root"], *(c["file"] for p in toc["parts"] for c in p["chapters"]))] + [
        "search.html?q=density"
    ]


PAGES = pages()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages: _build/html where it is newer than every source, else a build into a temporary folder."""
    built, sources = ROOT / "_build" / "html", [p for pattern in SOURCES for p in ROOT.glob(pattern)]
    written = max((p.stat().st_mtime for p in built.rglob("*.html")), default=0)
    if written > max(p.stat().st_mtime for p in sources if p.is_file()):
        return built
    out = tmp_path_factory.mktemp("site")
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", str(ROOT), "--path-output", str(out), "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out / "_build" / "html"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """A page of a fresh profile; it starts in the light theme whatever the machine prefers."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(120_000)  # of a machine that is busy with other work
    yield context.new_page()
    context.close()


def faults_while_loading(tab: Any, url: str) -> list[str]:
    """Errors on the console, requests that failed and requests to other hosts, from loading to rest."""
    found: list[str] = []
    home = urlsplit(url).netloc

    def seen(request: Any) -> None:
        if urlsplit(request.url).scheme in ("http", "https") and urlsplit(request.url).netloc != home:
            found.append(f"asks another host: {request.url}")

    listeners = {
        "console": lambda m: found.append(f"console: {m.text}") if m.type in ("error", "warning") else None,
        "pageerror": lambda error: found.append(f"exception: {error}"),
        "requestfailed": lambda r: found.append(f"failed: {r.url} {r.failure}"),
        "response": lambda r: found.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
        "request": seen,
    }
    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.goto(url, wait_until="load")
    tab.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
    tab.wait_for_function(
        "[...document.querySelectorAll('script[data-plotly]')].every(s => s.previousElementSibling._fullLayout)"
    )
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    return found


PICTURES = """async () => {
  const found = [];
  for (const image of document.querySelectorAll("img")) {
    image.loading = "eager";
    await image.decode().catch(() => {});
    const name = image.getAttribute("src").slice(-60);
    if (!image.naturalWidth) found.push("not loaded: " + name);
    if (!(image.getAttribute("alt") || "").trim()) found.push("without text: " + name);
  }
  return found;
}"""
FIGURES = """() => [...document.querySelectorAll("script[data-plotly]")].map(s => s.previousElementSibling).map(
  box => box.classList.contains("js-plotly-plot") && box._fullData.length
         && box.querySelectorAll("svg.main-svg path, svg.main-svg image, canvas").length)"""
WIDER = """() => {
  const page = document.documentElement;
  if (page.scrollWidth <= innerWidth) return [];
  const wide = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  return [page.scrollWidth + " px", ...wide.slice(0, 5).map(e => e.tagName + "." + e.className)];
}"""


@pytest.mark.parametrize("name", PAGES)
def test_page(tab: Any, address: str, name: str) -> None:
    tab.set_viewport_size(DESKTOP)
    assert faults_while_loading(tab, address + name) == []
    assert tab.title().strip() and tab.locator("h1").count() >= 1
    assert tab.evaluate(PICTURES) == []
    assert all(tab.evaluate(FIGURES)), "a figure of plotly without any mark"
    assert tab.locator("mjx-merror").count() == 0, "MathJax cannot read an equation"
    shades = []
    for theme in ("light", "dark"):
        tab.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        shades.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shades[0] != shades[1], "both themes look the same"
    tab.set_viewport_size(PHONE)
    assert tab.evaluate(WIDER) == [], "the page scrolls sideways on a phone"


def test_pages_with_figures_are_among_them(tab: Any, address: str) -> None:
    tab.goto(address + "notebooks/compare.html")
    assert len(tab.evaluate(FIGURES)) >= 4


def test_the_theme_button_changes_the_theme(tab: Any, address: str) -> None:
    tab.set_viewport_size(DESKTOP)
    tab.goto(address + "book/intro.html")
    seen = set()
    for _ in range(3):
        tab.locator("button.theme-switch-button:visible").first.click()
        seen.add(tab.evaluate("document.documentElement.dataset.theme"))
    assert seen == {"light", "dark"}


def test_search_finds_a_page(tab: Any, address: str) -> None:
    tab.goto(address + "search.html?q=perturbation")
    tab.wait_for_selector("#search-results li a")
    assert any("ddfp" in (a.get_attribute("href") or "") for a in tab.locator("#search-results li a").all())


class _Places(HTMLParser):
    """What a page can be linked to by, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        self.links |= {given["href"]} if tag == "a" and "href" in given else set()


def broken_links(site: Path, names: list[str]) -> tuple[int, list[str]]:
    """Number of links to pages and files of the book, and those that lead to no file or to no place in it."""
    read = {site / name: _Places((site / name).read_text()) for name in names}
    count, broken = 0, []
    for page, places in read.items():
        for link in sorted(places.links):
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            count += 1
            path, anchor = urldefrag(link)
            target = (page.parent / unquote(path.split("?")[0])).resolve() if path else page
            if not target.is_file():
                broken.append(f"{page.name}: {link}")
            elif anchor and target in read and unquote(anchor) not in read[target].ids:
                broken.append(f"{page.name}: no place {link}")
    return count, broken


def test_internal_links_lead_to_pages_and_places_in_them(site: Path) -> None:
    count, broken = broken_links(site.resolve(), PAGES[:-1])
    assert count > 100 and broken == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="#x">1</a><a href="#y">2</a><a href="b.html#z">3</a><a href="c.html">'
    )
    (tmp_path / "b.html").write_text('<a href="https://example.org/q">4</a>')
    count, broken = broken_links(tmp_path.resolve(), ["a.html", "b.html"])
    assert count == 4 and broken == ["a.html: no place #y", "a.html: no place b.html#z", "a.html: c.html"]
