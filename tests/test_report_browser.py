"""The pages in a browser: how they load, fit, read and are reached."""

import itertools
import re

import numpy as np
import pytest
from etils import epath

from lgm_jax import runs
from lgm_jax.report.page import write_unfinished_page
from lgm_jax.report.vocabulary import COLOURS
from tests.browsing import EITHER, EVIL, NO_CLASS, REQUIRED, expect
from tests.marks import slow
from tests.run_folders import NAMES, blobs

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


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        *(("phone", "dark"), ("desktop", "light"), slow("tablet", "light")),
        *(slow("phone", "light"), slow("tablet", "dark"), slow("desktop", "dark")),
    ],
)
@pytest.mark.parametrize(
    "name", ["one/report.html", "many/report.html", "going/report.html", "both.html"]
)
def test_pages_load_and_fit_the_screen(opened, name, size, scheme):
    page = opened(name, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    broken = "[...document.images].filter((i) => i.offsetParent && i.complete && !i.naturalWidth)"
    broken += ".length"
    assert page.evaluate(broken) == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark))) < 200) == (scheme == "dark")
    # WCAG AA: 4.5 for text, 3 for graphics.
    text = [["--ink", "--paper"], ["--soft", "--paper"], ["--soft", "--well"], ["--ink", "--well"]]
    drawn = [
        ["--accent", "--well"],
        ["--focus", "--paper"],
        *[[f"--s{i}", "--paper"] for i in range(7)],
        *[[f"--{method}", "--paper"] for method in COLOURS],
    ]
    assert min(page.evaluate(CONTRAST, text)) >= 4.5
    assert min(page.evaluate(CONTRAST, drawn)) >= 3


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


@pytest.mark.slow
def test_fingers_find_what_a_pointer_would(opened):
    page = opened("one/report.html", "phone", touch=True)
    expect(page.get_by_text("Tap an image to compare")).to_be_visible()
    lines = "(e) => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight)"
    assert page.locator(".lede").evaluate(lines) < 4.1
    # How good they are can be told from the first screen.
    expect(page.get_by_text("With random real ones it is")).to_be_in_viewport()
    expect(page.get_by_text("Point at an image")).to_be_hidden()
    thumb = page.locator(".plane button").nth(2)
    thumb.tap()
    expect(page.locator(".plane path.hot")).to_have_count(1)
    expect(page).to_have_url(NO_CLASS)
    hit = "(b) => parseFloat(getComputedStyle(b, '::after').width)"
    assert thumb.evaluate(hit) >= 44
    # Commands are whole on the screen, and their buttons do not lie on them.
    for code in page.locator(".code").all():
        inside, button = code.locator("code").bounding_box(), code.locator("button").bounding_box()
        assert inside["x"] + inside["width"] <= 390
        assert button["y"] + button["height"] <= inside["y"] + 1
    page.locator(".real").first.tap()
    expect(page.get_by_role("dialog", name="zero")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", slow("dark")])
@pytest.mark.parametrize("name", ["one/report.html#class-1", "one/report.html", "both.html"])
@pytest.mark.parametrize("size", ["desktop", slow("phone"), slow("tablet")])
def test_axe_finds_no_violations(opened, name, scheme, size):
    if not REQUIRED:
        pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened(name, size, scheme)).response["violations"]
    assert [(each["id"], [n["html"][:200] for n in each["nodes"]]) for each in found] == []


def test_keyboard_reaches_everything_in_reading_order(opened):
    page = opened("one/report.html")
    order = []
    for _ in range(90):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                "(document.activeElement.id || document.activeElement.className"
                " || document.activeElement.tagName).split(' ')[0]"
            )
        )
        if order[-1] == "BODY":
            break
    assert order[0] == "skip"
    firsts = list(dict.fromkeys(order))
    wanted = [
        "skip",
        "A",
        "open",
        "plain",
        "scroll",
        "film-play",
        "film-step",
        "map-in",
        "pane",
        "tinted",
    ]
    assert [name for name in firsts if name in wanted] == wanted
    # Buttons are above what they copy.
    assert firsts.index("copy") < firsts.index("PRE")
    assert order.count("open") == 4


def test_skip_link_shows_itself_and_jumps(opened):
    page = opened("one/report.html")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


@pytest.mark.parametrize("size", EITHER)
def test_comparison_names_the_best_and_what_differs(opened, size):
    page = opened("both.html", size)
    # The third is at fault; the first two are as good on a model that they share.
    expect(page.locator("h1")).to_have_text("near and far (two) are best: 80.5 %")
    expect(page.locator(".lede")).to_contain_text("On near, 0.0 points lie between them")
    expect(page.locator(".notice").last).to_contain_text("30, 30 and 40 steps")
    heads = page.locator(".side thead th").all_inner_texts()
    assert [head.split()[0] for head in heads] == ["class", "typical", "near", "far", "far"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # One box of curves for each objective.
    expect(page.locator("#loss h3")).to_have_text(["lgm", "clp"])
    expect(page.locator("#loss .legend li")).to_have_text(["near", "far (two)", "far (failed)"])
    colours = "(lines) => lines.map((line) => getComputedStyle(line).stroke)"
    of_curves = page.locator("#loss path.line").evaluate_all(colours)
    assert of_curves == page.locator("#loss .legend line").evaluate_all(colours)
    assert len(set(of_curves)) == 3
    # Images of all runs are seen at once, in columns of one width.
    boxes = [cell.bounding_box() for cell in page.locator("tr").nth(1).locator("button.cell").all()]
    assert len(boxes) == 4
    assert boxes[-1]["x"] + boxes[-1]["width"] <= page.viewport_size["width"]
    steps = np.diff([box["x"] for box in boxes])
    np.testing.assert_allclose(steps, steps[0], atol=1)
    # A cell enlarges.
    cell = page.locator("button.cell").nth(1)
    small = cell.bounding_box()["width"]
    cell.click()
    lens = page.get_by_role("dialog", name="zero, distilled for near")
    expect(lens.locator("img")).to_have_js_property("complete", True)
    assert lens.locator("img").bounding_box()["width"] > 1.5 * min(small, 200)
    page.keyboard.press("Escape")
    expect(lens).to_be_hidden()
    expect(cell).to_be_focused()
    # Numbers stay readable on their colours.
    assert page.locator("table.heat td").first.inner_text().startswith("80.5")


@pytest.mark.slow
def test_many_pictures_load_as_they_are_scrolled_to(opened):
    page = opened("many/report.html", "phone")
    # Those on the screen are asked for once it is drawn, perhaps after a pause of the network.
    expect(page.locator(".card img").first).to_have_js_property("naturalWidth", 8)
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


def test_unfinished_page_says_where_it_is(opened, pages):
    (pages / "going" / runs.PAGE).unlink()
    images = blobs(np.random.default_rng(1), 4, 32)
    names = (*NAMES[:3], EVIL)
    write_unfinished_page(
        epath.Path(pages / "going"), 20, images, np.arange(4, dtype=np.int32), names
    )
    page = opened("going/report.html")
    expect(page.get_by_text("Still distilling: step 20 of 30.")).to_be_visible()
