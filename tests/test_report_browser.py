"""The page in a real browser, opened from a file as a person would: Debian's Chromium."""

import itertools
import os
import re
import shutil

import numpy as np
import pytest
from etils import epath

from lgm_jax import runs
from lgm_jax.report import __main__ as command
from lgm_jax.report.page import write_unfinished_page
from tests.run_folders import NAMES, blobs, write_run

CHROMIUM = shutil.which("chromium")
REQUIRED = os.environ.get("LGM_REQUIRE_BROWSER") == "1"

if not REQUIRED:
    pytest.importorskip("playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

EVIL = "<script>alert(1)</script>"
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
CONTRAST = """
(pairs) => pairs.map(([front, back]) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const styles = getComputedStyle(document.documentElement);
  const light = (name) => {
    canvas.fillStyle = styles.getPropertyValue(name);
    canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
  };
  const [a, b] = [light(front), light(back)];
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
})
"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs with their pages: `one`, `two` of the same classes, `many` of 150; `both.html`."""
    folder = tmp_path_factory.mktemp("runs")
    names = (*NAMES[:3], EVIL)
    write_run(folder / "one", names=names, ipc=2, groups={"left": 90.0, "right": 7.0})
    write_run(folder / "two", names=names, backbone="far", seed=1)
    write_run(folder / "many", names=[f"class {i}" for i in range(150)], side=8)
    going = write_run(folder / "going", names=names, finished=False)
    for arguments in (
        [folder / "one", f"--beside={folder / 'two'}"],
        [folder / "many"],
        [going],
        [folder / "one", folder / "two", f"--out={folder / 'both.html'}"],
    ):
        assert command.main(list(map(str, arguments))) == 0
    return folder


@pytest.fixture
def opened(browser, folder):
    """Opens a page: `opened("one/report.html")`; at the end nothing may have been said or asked."""
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["one/report.html", "going/report.html", "both.html"])
def test_pages_load_and_fit_the_screen(opened, name, size, scheme):
    page = opened(name, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    broken = "[...document.images].filter((i) => i.offsetParent && !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 200) == (scheme == "dark")
    # WCAG AA: 4.5 for text, 3 for graphics.
    text = [["--ink", "--paper"], ["--soft", "--paper"], ["--soft", "--well"], ["--ink", "--well"]]
    drawn = [
        ["--accent", "--well"],
        ["--focus", "--paper"],
        *[[f"--s{i}", "--paper"] for i in range(7)],
    ]
    assert min(page.evaluate(CONTRAST, text)) >= 4.5
    assert min(page.evaluate(CONTRAST, drawn)) >= 3


@pytest.mark.parametrize("width", [390, 720, 1440])
def test_names_on_the_map_lie_within_it(opened, width):
    page = opened("one/report.html")
    page.set_viewport_size({"width": width, "height": 844})
    # At each edge, where features may put them.
    beyond = """
    () => [[1, 50], [99, 50], [50, 1], [50, 99]].flatMap(([x, y]) => {
      const plane = document.querySelector(".plane");
      const box = plane.getBoundingClientRect();
      return [...plane.querySelectorAll("button")].map((button) => {
        for (const size of ["wide", "narrow"]) {
          button.style.setProperty(`--${size}-x`, Math.min(Math.max(x, 7), 93));
          button.style.setProperty(`--${size}-y`, Math.min(Math.max(y, 7), 93));
        }
        const name = button.querySelector("span").getBoundingClientRect();
        return Math.max(box.left - name.left, name.right - box.right, name.bottom - box.bottom);
      });
    })
    """
    out = page.evaluate(beyond)
    assert len(out) >= 16
    assert max(out) <= 0


@pytest.mark.parametrize("name", ["one/report.html", "both.html"])
def test_pages_have_a_sound_structure(opened, name):
    page = opened(name)
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("main").count() == page.locator("footer").count() == 1
    unlabelled = "[...document.querySelectorAll('input')].filter((i) => !i.labels.length).length"
    assert page.evaluate(unlabelled) == 0
    assert page.evaluate("[...document.images].every((i) => i.alt.trim())")
    named = (
        "[...document.querySelectorAll('button')].every((b) => b.ariaLabel || b.textContent.trim())"
    )
    assert page.evaluate(named)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    named = page.evaluate(
        "[...document.querySelectorAll('[aria-labelledby],[aria-controls]')].flatMap((e) =>"
        " [e.getAttribute('aria-labelledby'), e.getAttribute('aria-controls')]).filter(Boolean)"
    )
    assert set(named) <= set(ids)
    targets = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => a.hash.slice(1))"
    )
    assert set(targets) <= set(ids)


def test_search_narrows_and_says_so(opened):
    page = opened("one/report.html")
    count = page.locator("#count")
    assert count.get_attribute("aria-live") == "polite"
    expect(count).to_have_text("4 classes")
    page.get_by_label("Find a class").fill("O")
    # Zero, one and two; the script's name has no o.
    expect(count).to_have_text("3 of 4 classes")
    expect(page.locator(".card:visible")).to_have_count(3)
    page.get_by_label("Find a class").fill("<SCRIPT> alert")
    expect(page.locator(".card:visible")).to_have_count(1)
    expect(page.locator(".card:visible h3")).to_have_text(EVIL)
    # A class's number; no name has one.
    page.get_by_label("Find a class").fill("2")
    expect(page.locator(".card:visible h3")).to_have_text("two")
    page.get_by_label("Find a class").fill("nope")
    expect(page.locator("#nothing")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".card:visible")).to_have_count(4)


def test_real_images_appear_on_hover_and_focus(opened):
    page = opened("one/report.html")
    first, second = (page.locator(".open").nth(i) for i in range(2))
    expect(first.locator(".strip")).to_have_css("opacity", "0")
    first.hover()
    expect(first.locator(".strip")).to_have_css("opacity", "1")
    assert first.locator(".strip").inner_text().split() == ["look-alike", "random"]
    # The typical one is there without that.
    expect(
        page.locator(".foot").first.get_by_alt_text("Typical real image of zero")
    ).to_be_visible()
    page.get_by_label("Find a class").focus()
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(first.locator(".strip")).to_have_css("opacity", "0")
    expect(second).to_be_focused()
    expect(second.locator(".strip")).to_have_css("opacity", "1")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_class_is_enlarged_by_click_and_keyboard(opened):
    page = opened("one/report.html")
    dialog = page.locator("#viewer")
    page.locator(".open").first.click()
    expect(dialog).to_be_visible()
    expect(page.get_by_role("dialog", name="zero")).to_be_visible()
    # Two rows of a distilled and three real images, and another run's.
    expect(dialog.locator("img")).to_have_count(2 * 4 + 1)
    captions = dialog.locator("figcaption b").all_inner_texts()
    assert captions[:4] == ["distilled", "typical", "look-alike", "random"]
    assert page.evaluate("[...document.querySelectorAll('#viewer img')].every((i) => i.alt)")
    assert "distilled for far" in dialog.inner_text()
    assert page.evaluate(
        "[...document.querySelectorAll('#viewer img')].every((i) => i.complete && i.naturalWidth)"
    )
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).to_have_text("one")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    # Around the end, to the class whose name is a script.
    expect(page.locator("#viewer-title")).to_have_text(EVIL)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(".open").last).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_timelapse_follows_the_slider_and_plays(opened):
    page = opened("one/report.html")
    slider, film = page.get_by_role("slider", name="Step"), page.locator(".cells")
    pixels = "() => [...document.querySelectorAll('.cells canvas')].map((c) => c.toDataURL())"
    expect(film).to_have_attribute("aria-label", "The images at step 30, loss 0.0333")
    assert film.inner_text().split("\n") == ["zero"] * 2 + ["one"] * 2 + ["two"] * 2 + [EVIL] * 2
    last = page.evaluate(pixels)
    assert len(set(last)) == 8
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(film).to_have_attribute("aria-label", "The images at step 20, loss 0.0500")
    assert not set(page.evaluate(pixels)) & set(last)
    expect(slider).to_have_attribute("aria-valuetext", "step 20, loss 0.0500")
    expect(page.locator("#step-said")).to_have_text("step 20, loss 0.0500")
    page.keyboard.press("Home")
    expect(film).to_have_attribute("aria-label", "The images at step 10, loss 0.1000")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(film).to_have_attribute("aria-label", "The images at step 30, loss 0.0333")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    assert page.evaluate(pixels) == last


def test_map_lights_up_a_class_and_leads_to_it(opened):
    page = opened("one/report.html")
    thumb = page.locator(".plane button").first
    lit, said = page.locator(".plane path.hot"), page.locator("#map-said")
    thumb.focus()
    expect(lit).to_have_count(1)
    label = thumb.get_attribute("data-label")
    assert lit.get_attribute("data-label") == label
    # Chosen, it stays lit.
    page.keyboard.press("Enter")
    expect(thumb).to_have_attribute("aria-pressed", "true")
    expect(said).to_have_text(re.compile(r"zero: \d+ real images lit up\."))
    page.get_by_role("button", name="Enlarge its images").click()
    expect(page.get_by_role("dialog", name="zero")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#map-open")).to_be_focused()
    expect(lit).to_have_count(1)
    thumb.focus()
    page.keyboard.press("Enter")
    expect(thumb).to_have_attribute("aria-pressed", "false")
    expect(said).to_contain_text("Choose a thumbnail")


def test_fingers_find_what_a_pointer_would(opened):
    page = opened("one/report.html", "phone", touch=True)
    expect(page.get_by_text("Tap an image to enlarge it")).to_be_visible()
    expect(page.get_by_text("Point at an image")).to_be_hidden()
    thumb = page.locator(".plane button").nth(2)
    thumb.tap()
    expect(page.locator(".plane path.hot")).to_have_count(1)
    assert "#" not in page.url
    hit = "(b) => parseFloat(getComputedStyle(b, '::after').width)"
    assert thumb.evaluate(hit) >= 44
    # Commands are whole on the screen, and their buttons do not lie on them.
    for code in page.locator(".code").all():
        inside, button = code.locator("code").bounding_box(), code.locator("button").bounding_box()
        assert inside["x"] + inside["width"] <= 390
        assert button["y"] + button["height"] <= inside["y"] + 1
    page.locator(".real").first.tap()
    expect(page.get_by_role("dialog", name="zero")).to_be_visible()


def test_class_of_an_address_is_marked(opened):
    page = opened("one/report.html#class-2")
    outline = "getComputedStyle(document.querySelector('#class-2 .open')).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_keyboard_reaches_everything_in_reading_order(opened):
    page = opened("one/report.html")
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "(document.activeElement.className || document.activeElement.id"
                " || document.activeElement.tagName).split(' ')[0]"
            )
        )
        if order[-1] == "BODY":
            break
    assert order[0] == "skip"
    firsts = list(dict.fromkeys(order))
    wanted = ["skip", "A", "search", "open", "SUMMARY", "scroll", "plain", "step", "tinted"]
    assert firsts[: len(wanted)] == wanted
    # Buttons are above what they copy.
    assert firsts.index("copy") < firsts.index("PRE")
    assert order.count("open") == 4


def test_skip_link_shows_itself_and_jumps(opened):
    page = opened("one/report.html")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


def test_comparison_searches_rows(opened):
    page = opened("both.html")
    expect(page.locator("#classes tr")).to_have_count(4)
    page.get_by_label("Find a class").fill("two")
    expect(page.locator("#classes tr:visible")).to_have_count(1)
    expect(page.locator("#classes tr:visible img")).to_have_count(2)
    expect(page.get_by_role("heading", name="Across models")).to_be_visible()
    # Numbers stay readable on their colours.
    assert page.locator("table.heat td").first.inner_text().startswith("80.5")


def test_many_pictures_load_as_they_are_scrolled_to(opened):
    page = opened("many/report.html", "phone")
    page.wait_for_load_state("networkidle")
    before = {url for url in opened.asked if "/distilled/" in url}
    assert 0 < len(before) < 150
    page.locator(".card").last.scroll_into_view_if_needed()
    expect(page.locator(".card").last.locator("img").first).to_have_js_property("naturalWidth", 8)


def test_page_prints_without_its_controls(opened):
    page = opened("one/report.html")
    page.emulate_media(media="print")
    expect(page.locator(".toolbar")).to_be_hidden()
    expect(page.locator(".card").first).to_be_visible()


def test_unfinished_page_says_where_it_is(opened, folder):
    (folder / "going" / runs.PAGE).unlink()
    images = blobs(np.random.default_rng(1), 4, 32)
    names = (*NAMES[:3], EVIL)
    write_unfinished_page(
        epath.Path(folder / "going"), 20, images, np.arange(4, dtype=np.int32), names
    )
    page = opened("going/report.html")
    expect(page.get_by_text("Still distilling: step 20 of 30.")).to_be_visible()
