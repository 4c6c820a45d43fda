"""Pages of runs in a real browser, opened from files as a person would: Debian's Chromium."""

import contextlib
import json
import os
import re
import shutil

import pytest

from lgm_jax import runs
from lgm_jax.report import __main__ as command
from tests.marks import slow
from tests.run_folders import NAMES, probe_entry, write_run

CHROMIUM = shutil.which("chromium")
REQUIRED = os.environ.get("LGM_REQUIRE_BROWSER") == "1"

if not REQUIRED:
    pytest.importorskip("playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

__all__ = ["EITHER", "EVIL", "NO_CLASS", "REQUIRED", "SIZES", "expect"]

# Under load, a browser takes longer than the five seconds of Playwright.
expect.set_options(timeout=30_000)

NO_CLASS = re.compile("^[^#]*$")
"""The address of a page on which no class is enlarged; a browser tells it a little later."""
EVIL = "<script>alert(1)</script>"
SIZES = {"phone": (390, 844), "tablet": (1024, 768), "desktop": (1440, 900)}
# A phone has the least room; the style sheets have the same rules for a tablet as for a desktop.
EITHER = ("phone", slow("tablet"), slow("desktop"))


@contextlib.contextmanager
def start_browser():
    """Yields a browser."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000
        )
        yield found
        found.close()


def fail(folder):
    """Makes a run one whose images are worse than random ones, and not at their finest."""
    results = json.loads((folder / runs.RESULTS).read_text())
    results["probe"]["far"]["distilled"] |= probe_entry(40.0)
    results["pyramid"] = {"reached": 8, "finest": 32}
    results["objective"] = "clp"
    (folder / runs.RESULTS).write_text(json.dumps(results))


def make_pages(folder):
    """Runs with their pages: `one`, `two` of the same classes, `many` of 150; `both.html`."""
    names = (*NAMES[:3], EVIL)
    write_run(folder / "one", names=names, ipc=2, groups={"left": 90.0, "right": 7.0})
    write_run(folder / "two", names=names, backbone="far", seed=1)
    write_run(folder / "many", names=[f"english_springer_spaniel_{i}" for i in range(150)], side=8)
    fail(write_run(folder / "failed", names=names, backbone="far", steps=(10, 20, 40)))
    going = write_run(folder / "going", names=names, finished=False)
    for arguments in (
        [folder / "one", f"--beside={folder / 'two'}"],
        [folder / "many"],
        [going],
        [folder / "failed"],
        [folder / "one", folder / "two", folder / "failed", f"--out={folder / 'both.html'}"],
    ):
        assert command.main(list(map(str, arguments))) == 0


@contextlib.contextmanager
def opening(browser, folder):
    """Yields what opens a page; at the end nothing may have been said or asked."""
    contexts, said, asked = [], [], []

    def open_page(name, size="desktop", scheme="light", touch=False):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            has_touch=touch,
            is_mobile=touch,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"alert: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{folder}/{name}")
        return page

    open_page.asked = asked
    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    ours = ("data:", f"file://{folder}/")
    assert [url[:100] for url in asked if not url.startswith(ours)] == []
