"""Every page of the book in a real browser: it draws, links lead somewhere, nothing is missing, nothing leaves home."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import pytest
import yaml

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ROOT = Path(__file__).parents[1]
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
    "semiseg/book*.py",
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


def test_internal_links_lead_to_pages_and_places_in_them(tab: Any, address: str) -> None:
    anchors: dict[str, set[str]] = {}
    wanted: dict[str, str] = {}
    for name in PAGES[:-1]:
        tab.goto(address + name, wait_until="domcontentloaded")
        anchors[address + name] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        for href in tab.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"):
            target = urljoin(address + name, href)
            if target.startswith(address):
                wanted.setdefault(target, name)
    broken = []
    for target, source in sorted(wanted.items()):
        url, anchor = urldefrag(target)
        if url not in anchors and not tab.request.head(url).ok:
            broken.append(f"{source}: {url}")
        elif anchor and url in anchors and anchor not in anchors[url]:
            broken.append(f"{source}: no place {anchor} in {url}")
    assert len(wanted) > 100 and broken == []
