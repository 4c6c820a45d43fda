"""Images and accuracies of classes, as a page shows them in a browser."""

import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from lgm_jax.report.vocabulary import TITLES
from tests.browsing import EITHER, EVIL, NO_CLASS, SIZES, expect
from tests.marks import slow


@pytest.mark.slow
def test_search_narrows_and_says_so(opened):
    # Few classes need none.
    expect(opened("one/report.html").get_by_label("Find a class")).to_have_count(0)
    page = opened("many/report.html")
    field, count = page.get_by_label("Find a class", exact=True), page.locator("#count")
    assert count.get_attribute("aria-live") == "polite"
    expect(count).to_have_text("150 classes")
    field.fill("SPANIEL_14")
    expect(count).to_have_text("11 of 150 classes")
    expect(page.locator(".card:visible")).to_have_count(11)
    # A class's number; names with it, too.
    field.fill("149")
    expect(page.locator(".card:visible h3")).to_have_text("english_springer_spaniel_149")
    field.fill("nope")
    expect(page.locator("#nothing")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".card:visible")).to_have_count(150)


@pytest.mark.slow
def test_real_images_appear_on_hover_and_focus(opened):
    page = opened("one/report.html")
    first, second = (page.locator(".open").nth(i) for i in range(2))
    expect(first.locator(".strip")).to_have_css("opacity", "0")
    first.hover()
    expect(first.locator(".strip")).to_have_css("opacity", "1")
    assert first.locator(".strip").inner_text().split("\n") == ["look-alike real", "random real"]
    # The typical one is there without that.
    expect(
        page.locator(".foot").first.get_by_alt_text("Typical real image of zero")
    ).to_be_visible()
    first.focus()
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")
    expect(first.locator(".strip")).to_have_css("opacity", "0")
    expect(second).to_be_focused()
    expect(second.locator(".strip")).to_have_css("opacity", "1")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.slow
def test_class_is_enlarged_by_click_and_keyboard(opened):
    page = opened("one/report.html")
    dialog = page.locator("#viewer")
    page.locator(".open").first.click()
    expect(dialog).to_be_visible()
    expect(page.get_by_role("dialog", name="zero")).to_be_visible()
    # Two rows of a distilled and three real images, and another run's.
    expect(dialog.locator("img")).to_have_count(2 * 4 + 1)
    captions = dialog.locator("figcaption b").all_inner_texts()
    assert captions[:4] == ["distilled", "typical real", "look-alike real", "random real"]
    assert page.evaluate("[...document.querySelectorAll('#viewer img')].every((i) => i.alt)")
    assert "distilled for far" in dialog.inner_text()
    page.wait_for_function(
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


@pytest.mark.parametrize("size", EITHER)
def test_class_has_an_address_of_its_own(opened, size):
    page = opened("one/report.html#class-2", size)
    dialog = page.locator("#viewer")
    expect(page.get_by_role("dialog", name="two")).to_be_visible()
    # Accuracies, and what it is taken for.
    expect(dialog.locator(".about dt")).to_have_text(
        ["distilled", "typical real", "look-alike real", "random real", "all real"]
    )
    expect(dialog.locator(".about a")).to_have_text([EVIL])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Its address goes with it, and is gone when it is.
    page.get_by_role("button", name="Previous class").click()
    expect(page).to_have_url(re.compile("#class-1$"))
    page.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(NO_CLASS)
    page.locator(".open").first.click()
    expect(page).to_have_url(re.compile("#class-0$"))
    page.go_back()
    expect(dialog).to_be_hidden()
    # From one class to what it is taken for.
    page.locator("#class-rows a").first.click()
    expect(dialog).to_be_visible()
    dialog.locator(".about a").first.click()
    expect(dialog).to_be_visible()


@pytest.mark.parametrize("size", list(SIZES))
def test_images_come_before_the_text(opened, size):
    page = opened("one/report.html", size)
    card, text = page.locator(".card").first.bounding_box(), page.locator(".lede").bounding_box()
    title = page.locator("h1").bounding_box()
    expect(page.locator("h1")).to_have_text("8 images teach 80.5 %, all 200 teach 95.0 %")
    assert title["y"] < card["y"]
    assert (card["y"] < text["y"]) == (size == "phone")
    # Within the first screen, with charts beside each other where there is room.
    assert card["y"] + card["height"] < SIZES[size][1]
    charts = [chart.bounding_box() for chart in page.locator("#how-good .figure").all()]
    assert len(charts) == 3
    rows = {round(chart["y"]) for chart in charts}
    assert len(rows) == {"phone": 3, "tablet": 2, "desktop": 1}[size]


@pytest.mark.parametrize("size", EITHER)
def test_names_break_after_underscores_alone(opened, size):
    page = opened("many/report.html", size)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    lines = page.evaluate("""
    () => [...document.querySelectorAll("h3 bdi, #class-rows bdi")].slice(0, 60).flatMap((name) =>
      [...name.childNodes].filter((part) => part.nodeType === 3).map((part) => {
        const range = document.createRange();
        range.selectNode(part);
        return range.getClientRects().length;
      }))
    """)
    assert len(lines) >= 200
    assert set(lines) <= {0, 1}, "no word is broken"


@pytest.mark.parametrize("size", EITHER)
def test_failed_run_says_so_first(opened, size):
    page = opened("failed/report.html", size)
    expect(page.locator("h1")).to_have_text("4 images: unfinished")
    notices = page.locator(".notice.warning")
    expect(notices).to_have_count(2)
    assert "no finer than 8 of 32 px" in notices.nth(0).inner_text()
    assert "less than random real images (58.0 %)" in notices.nth(1).inner_text()
    assert notices.nth(1).bounding_box()["y"] < page.locator(".card").first.bounding_box()["y"]


@pytest.mark.parametrize("size", EITHER)
def test_classes_are_sorted(opened, size):
    page = opened("one/report.html", size)
    rows = page.locator("#class-rows tr")
    own, gain = (
        [float(row.get_attribute(f"data-{name}")) for row in rows.all()] for name in ("own", "gain")
    )
    assert own == sorted(own)
    page.get_by_role("button", name="Gain over typical real").click()
    after = [float(row.get_attribute("data-gain")) for row in rows.all()]
    assert after == sorted(gain, reverse=True)
    page.get_by_role("button", name="Best first").click()
    after = [float(row.get_attribute("data-own")) for row in rows.all()]
    assert after == own[::-1]
    # The matrix has the same numbers, class by class.
    diagonal = page.locator("td.right").all_inner_texts()
    assert sorted(map(float, diagonal)) == [round(each) for each in own]
    wide = page.locator(".classes td.wide").first
    expect(wide).to_be_hidden() if size == "phone" else expect(wide).to_be_visible()


@pytest.mark.slow
def test_many_classes_are_shown_a_few_at_a_time(opened):
    page = opened("many/report.html")
    rows = page.locator("#class-rows tr")
    expect(page.locator("#class-rows tr:visible")).to_have_count(12)
    page.get_by_role("button", name="Show all 150 classes").click()
    expect(page.locator("#class-rows tr:visible")).to_have_count(150)
    assert rows.count() == 150
    picture = page.locator(".confusion-picture")
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("naturalWidth", 150)


def test_figures_are_saved_as_pictures_and_as_drawings(opened, tmp_path):
    page = opened("one/report.html")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as figure: accuracy on near, SVG").click()
    assert saved.value.suggested_filename == "accuracy_near.svg"
    saved.value.save_as(tmp_path / "a.svg")
    drawing = ElementTree.parse(tmp_path / "a.svg").getroot()
    said = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert said[0] == "Top-1 accuracy on near, %"
    assert {"distilled", "80.5 ± 1.0", "all real", "95.0 ± 1.0"} <= set(said)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as figure: loss, PNG").click()
    saved.value.save_as(tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1280, 600)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as figure: accuracy class by class, SVG").click()
    saved.value.save_as(tmp_path / "classes.svg")
    drawing = ElementTree.parse(tmp_path / "classes.svg").getroot()
    said = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert said[0] == "Accuracy class by class on near, %"
    # A dot of each row for each of the four classes, and for the legend.
    rows = sum(said.count(title) for title in TITLES.values())
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}circle"))) == 5 * rows == 25
    assert EVIL[:22] in "".join(said)


@pytest.mark.parametrize("scheme", ["light", slow("dark")])
def test_two_lines_stand_under_the_title(opened, scheme):
    page = opened("one/report.html", "desktop", scheme)
    lines = "(e) => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight)"
    assert round(page.locator(".lede").evaluate(lines)) <= 2


@pytest.mark.parametrize("size", EITHER)
def test_charts_have_room_for_their_lines_and_a_legend_only_with_dots(opened, size):
    page = opened("one/report.html", size)
    wide = page.locator("#classes .classes td.wide").first.is_visible()
    assert page.locator("#classes .keys").is_visible() == wide == (size != "phone")
    chart = page.locator("#how-good .figure").first
    room = chart.locator(".track svg").first.bounding_box()["width"]
    assert room > 0.8 * chart.bounding_box()["width"]
    # Lines lie on the dots, which would hide short ones.
    parts = "(e) => [...e.children].map((part) => part.classList[0]).filter((c) => c !== 'rule')"
    drawn = chart.locator(".track svg").first.evaluate(parts)
    assert drawn[-3:] == ["dot", "gap", "whisker"]


def test_every_saved_figure_has_a_title_and_a_name_of_its_own(pages):
    for name in ("one/report.html", "both.html"):
        figures = (pages / name).read_text().split('<template class="figure-file"')[1:]
        titles = [re.findall(r'font-weight="bold">(.+)</text>', figure) for figure in figures]
        names = [re.findall(r'data-name="(.+?)"', figure)[0] for figure in figures]
        assert len(figures) >= 2
        assert set(map(len, titles)) == {1}
        assert len(set(names)) == len(names)
