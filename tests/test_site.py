"""The site of the documentation in a browser, as mkdocs builds it."""

import contextlib
import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.browsing import REQUIRED, expect

ROOT = Path(__file__).parents[1]
PAGES = ("", "ablations/", "extending/", "gallery/", "results/table1/", "reference/objectives/")

pytestmark = pytest.mark.slow

if not REQUIRED:
    pytest.importorskip("material")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder):
    """Yields the address of a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """Opens a page of the site in a scheme and a width."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    with serve(folder) as address:

        def open_page(name, scheme="light", width=1440):
            page = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            ).new_page()
            page.goto(address + name, wait_until="load")
            # What the theme measures, it has measured once the page is drawn.
            page.evaluate(
                "() => new Promise((done) => requestAnimationFrame("
                "() => requestAnimationFrame(() => setTimeout(done))))"
            )
            return page

        yield open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_opens_in_full_width_and_closes(open_page, scheme):
    page = open_page("results/table1/", scheme)
    figure, shown = page.locator(".md-content img").first, page.locator("dialog.enlarged")
    small = figure.bounding_box()["width"]
    expect(shown).to_be_hidden()
    figure.focus()
    page.keyboard.press("Enter")
    expect(shown).to_be_visible()
    expect(shown.locator("img")).to_have_attribute("alt", "Table 1: distilled images and real ones")
    expect(shown.locator("img")).to_have_js_property("complete", True)
    assert shown.locator("img").bounding_box()["width"] > 1.5 * small
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()
    figure.click()
    shown.locator("img").click()
    expect(shown).to_be_hidden()
    # It follows the page: light ink on dark paper.
    paper = shown.evaluate("(e) => getComputedStyle(e).colorScheme")
    assert paper == scheme


def test_pages_fit_a_phone(open_page):
    for name in (*PAGES, "limits/", "recipes/", "reference/config/"):
        page = open_page(name, width=390)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        # A flag is not broken after its hyphens, nor a name within a table.
        broken = "(words) => words.filter((w) => w.getClientRects().length > 1)"
        broken += ".map((w) => w.textContent)"
        assert page.locator("code .word").evaluate_all(broken) == [], name
    # What a key means is seen without scrolling, beside a default of many names, too.
    row = page.locator("tr", has_text="baselines").first
    meaning = row.locator("td").last.bounding_box()
    assert meaning["x"] + meaning["width"] / 2 < 390
    # Words of a figure can be read: it scrolls as a table does.
    figure = open_page("results/table1/", width=390).locator(".md-content img").first
    assert figure.bounding_box()["width"] > 500


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations_on_the_site(open_page, scheme):
    if not REQUIRED:
        pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    for name in PAGES:
        found = Axe().run(open_page(name, scheme)).response["violations"]
        said = [(each["id"], [n["html"][:200] for n in each["nodes"]]) for each in found]
        assert said == [], name
