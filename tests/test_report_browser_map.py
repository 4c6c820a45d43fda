"""The map and the timelapse of a page, in a browser."""

import itertools
import re

import pytest

from tests.browsing import EITHER, EVIL, SIZES, expect
from tests.marks import slow

# Where dots and names lie is tested without a browser, too; what clicks do, here alone.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", list(SIZES))
def test_nothing_on_the_map_covers_a_name(opened, size):
    page = opened("one/report.html", size)
    boxes = page.evaluate("""
    () => {
      const inside = document.querySelector(".pane").getBoundingClientRect();
      return [...document.querySelectorAll(".plane button")].map((button) =>
        [button, button.querySelector("span")].map((element) => {
          const box = element.getBoundingClientRect();
          return [box.left - inside.left, box.top - inside.top,
            inside.right - box.right, inside.bottom - box.bottom, box.width, box.height];
        }));
    }
    """)
    assert len(boxes) == 8
    flat = [box for pair in boxes for box in pair]
    assert min(min(box[:4]) for box in flat) >= 0, "within the map"
    assert min(min(box[4:]) for box in flat) > 10
    for (i, a), (j, b) in itertools.combinations(enumerate(flat), 2):
        # A thumbnail and its own name lie one above the other.
        apart = max(b[0] - a[0] - a[4], a[0] - b[0] - b[4], b[1] - a[1] - a[5], a[1] - b[1] - b[5])
        assert apart >= 0, (i, j)


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
    expect(page.locator("#film-said")).to_have_text("step 20, loss 0.0500")
    page.keyboard.press("Home")
    expect(film).to_have_attribute("aria-label", "The images at step 10, loss 0.1000")
    # It plays for half a second, which a look from outside may miss.
    page.locator("#film-play").evaluate("""
    (button) => {
      window.named = [];
      new MutationObserver(() => window.named.push(button.textContent))
        .observe(button, { childList: true });
    }
    """)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("() => window.named.length === 2")
    assert page.evaluate("() => window.named") == ["Pause", "Play"]
    expect(film).to_have_attribute("aria-label", "The images at step 30, loss 0.0333")
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


def test_class_shows_its_own_timelapse_smooth_or_in_pixels(opened):
    page = opened("one/report.html#class-1")
    canvases, slider = page.locator(".canvases canvas"), page.locator("#viewer-step")
    expect(canvases).to_have_count(2)
    # Both are drawn when the picture of the last step has loaded.
    expect(page.locator(".cells")).to_have_attribute(
        "aria-label", "The images at step 30, loss 0.0333"
    )
    pixels = "() => [...document.querySelectorAll('.canvases canvas')].map((c) => c.toDataURL())"
    last = page.evaluate(pixels)
    # As in the sheet of all classes, where it comes third and fourth.
    all_pixels = "() => [...document.querySelectorAll('.cells canvas')].map((c) => c.toDataURL())"
    assert last == page.evaluate(all_pixels)[2:4]
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#viewer-said")).to_have_text("step 10, loss 0.1000")
    # The words come at once, a picture that has not been shown yet once it has loaded.
    anew = f"(last) => ({pixels})().every((image) => !last.includes(image))"
    page.wait_for_function(anew, arg=last)
    # Arrows on the slider do not change the class.
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="one")).to_be_visible()
    expect(canvases.first).to_have_css("image-rendering", "auto")
    page.get_by_label("Pixels").check()
    expect(canvases.first).to_have_css("image-rendering", "pixelated")
    expect(page.locator("#viewer-body img").first).to_have_css("image-rendering", "pixelated")


@pytest.mark.parametrize("size", ["phone", slow("tablet"), slow("desktop")])
def test_map_of_many_classes_has_dots_with_thumbnails(opened, size):
    page = opened("many/report.html", size)
    dots, tip = page.locator(".plane button"), page.locator("#map-tip")
    expect(dots).to_have_count(150)
    expect(tip).to_be_hidden()
    field = page.get_by_label("Find a class on the map")
    field.fill("SPANIEL_7")
    # 7 and 70 to 79.
    expect(page.locator("#map-said")).to_have_text("11 classes have such a name.")
    expect(page.locator(".plane button.hot")).to_have_count(11)
    field.fill("english_springer_spaniel_7")
    expect(page.locator(".plane button.hot")).to_have_count(1)
    expect(tip).to_contain_text("english_springer_spaniel_7")
    expect(tip.locator("img")).to_have_js_property("naturalWidth", 8)
    inside, box = tip.bounding_box(), page.locator(".pane").bounding_box()
    assert box["x"] <= inside["x"]
    assert inside["x"] + inside["width"] <= box["x"] + box["width"]
    field.fill("nope")
    expect(tip).to_be_hidden()
    expect(page.locator(".plane button.hot")).to_have_count(0)
    # A pointer has the same, once the page has come to rest under it.
    dots.nth(3).scroll_into_view_if_needed()
    dots.nth(3).element_handle().wait_for_element_state("stable")
    dots.nth(3).hover(force=True)
    expect(tip).to_be_visible()


@pytest.mark.parametrize("size", EITHER)
def test_map_is_enlarged(opened, size):
    page = opened("one/report.html", size)
    larger, smaller = (page.get_by_role("button", name=name) for name in ("Larger", "Smaller"))
    width = "() => document.querySelector('.plane').offsetWidth"
    thumb = page.locator(".plane button").first
    before, side = page.evaluate(width), thumb.bounding_box()["width"]
    expect(smaller).to_be_disabled()
    larger.click()
    larger.click()
    assert page.evaluate(width) == pytest.approx(2 * before, abs=2)
    assert thumb.bounding_box()["width"] == pytest.approx(side, abs=1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # About the middle of what was seen.
    middle = "() => { const p = document.querySelector('.pane');"
    middle += " return (p.scrollLeft + p.clientWidth / 2) / p.scrollWidth; }"
    assert page.evaluate(middle) == pytest.approx(0.5, abs=0.02)
    smaller.click()
    smaller.click()
    assert page.evaluate(width) == before


@pytest.mark.parametrize("size", EITHER)
def test_enlarged_map_follows_the_chosen_class(opened, size):
    page = opened("one/report.html#class-3", size)
    page.get_by_role("button", name="Close").click()
    lit = page.locator(".plane path.hot")
    expect(lit).to_have_attribute("data-label", "3")
    for _ in range(5):
        page.get_by_role("button", name="Larger").click()
    seen = """
    (label) => {
      const thumb = `.plane button[data-label="${label}"]`;
      const [box, own, name] = [".pane", thumb, `${thumb} span`].map(
        (part) => document.querySelector(part).getBoundingClientRect());
      return box.left - 1 <= own.left && own.right <= box.right + 1
        && box.top - 1 <= own.top && name.bottom <= box.bottom + 1;
    }
    """
    page.wait_for_function(seen, arg=3)
    assert not page.evaluate(seen, 0), "elsewhere"
    # From the table, and from one class to the next.
    page.locator("#class-rows a", has_text="zero").click()
    page.wait_for_function(seen, arg=0)
    page.get_by_role("button", name="Next class").click()
    page.wait_for_function(seen, arg=1)
    page.get_by_role("button", name="Close").click()
    expect(lit).to_have_attribute("data-label", "1")


def test_map_is_enlarged_about_the_chosen_class(opened):
    page = opened("many/report.html")
    page.get_by_label("Find a class on the map").fill("english_springer_spaniel_7")
    place = "(b) => { const [own, box] = [b, document.querySelector('.pane')].map("
    place += "(e) => e.getBoundingClientRect());"
    place += " return [own.x + own.width / 2 - box.x, own.y + own.height / 2 - box.y]; }"
    dot = page.locator(".plane button.hot")
    before = dot.evaluate(place)
    for _ in range(2):
        page.get_by_role("button", name="Larger").click()
    assert dot.evaluate(place) == pytest.approx(before, abs=2)


def test_enlarged_map_shows_the_thumbnail_that_is_searched(opened):
    page = opened("many/report.html")
    for _ in range(5):
        page.get_by_role("button", name="Larger").click()
    field, tip = page.get_by_label("Find a class on the map"), page.locator("#map-tip")
    for name in ("english_springer_spaniel_7", "english_springer_spaniel_14"):
        field.fill(name)
        # The map has scrolled, by which thumbnails of other places go.
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        expect(tip).to_contain_text(name)
        expect(tip).to_be_visible()
