"""Classes, cards, fonts and the best of several runs, as pages and pictures show them."""

import json
import math

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageFont

from lgm_jax import predictions, runs
from lgm_jax.report import classes, compare, grid, view, words
from lgm_jax.report.judge import Finding, difference_error, doubtful
from lgm_jax.report.pictures import Place
from tests.report_pages import write
from tests.run_folders import probe_entry, write_run


def change(folder, **entries):
    """Changes rows of the first backbone in a run's results; returns the view."""
    path = folder / runs.RESULTS
    results = json.loads(path.read_text())
    for method, entry in entries.items():
        results["probe"]["near"][method] |= entry
    path.write_text(json.dumps(results))
    return view.read_run(folder)


def test_classes_name_what_they_are_taken_for(tmp_path):
    # Of four images each: two of zero are taken for one; of one, one each for three and for zero,
    # and two for nothing.
    labels = np.repeat(np.arange(4), 4)
    named = np.asarray([0, 0, 1, 1, 3, 0, -1, -1, 2, 2, 2, 2, 3, 3, 3, 3])[None]
    own = {
        "per_class": predictions.by_class(named, labels, 4),
        "confusion": predictions.confusion(named, labels),
    }
    typical = {"per_class": [75.0, 25.0, 100.0, 50.0]}
    run = change(write_run(tmp_path / "run"), distilled=own, centroids=typical)
    found = classes.describe_classes(run, Place())
    assert [row["own"] for row in found["rows"]] == [50, 0, 100, 100]
    assert [row["gain"] for row in found["rows"]] == [-25, -25, 0, 50]
    taken = [[(each["name"], each["percent"]) for each in row["confused"]] for row in found["rows"]]
    assert taken == [[("one", 50)], [("zero", 25), ("three", 25)], [], []]
    assert found["matrix"]["rows"][1] == [0.25, 0, 0, 0.25]
    first = found["pairs"][0]
    assert (first["name"], first["named"], first["percent"]) == ("zero", "one", 50)
    assert found["images"] == (4, 4)
    # Runs of earlier versions have none.
    without = change(tmp_path / "run", distilled={"per_class": None}, full={"per_class": None})
    assert classes.describe_classes(without, Place()) is None


def test_confusion_of_many_classes_is_a_picture(tmp_path):
    run = view.read_run(write_run(tmp_path / "run", names=[f"c{i}" for i in range(30)], side=8))
    here = Place(epath.Path(tmp_path / "pictures"))
    found = classes.describe_classes(run, here)
    assert found["matrix"] is None
    with Image.open(tmp_path / found["picture"]) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    assert pixels.shape == (30, 30, 4)
    own = np.array([row["own"] for row in found["rows"]]) / 100
    assert min(own) > 0
    # What is rare is seen, too, and what is frequent more so.
    opacity = 255 * (0.3 + 0.7 * np.sqrt(own))
    np.testing.assert_allclose(np.diagonal(pixels[..., 3]), opacity, atol=1)


def test_headline_has_the_result_and_does_not_boast():
    entries = {"distilled": probe_entry(89.84), "full": probe_entry(95.75)}
    said = words.headline({"a": entries}, [], 10, 1149, [])
    assert said == "10 images teach 89.8\u00a0%, all 1,149 teach 95.8\u00a0%"
    fault = Finding("no better than guessing", "On near, ...")
    assert (
        words.headline({"a": entries}, [], 10, 1149, [fault])
        == "10 images: no better than guessing"
    )
    # On the backbone that they are made for, whatever happened on others.
    both = {"b": {"distilled": probe_entry(20)}, "a": entries}
    elsewhere = fault._replace(backbone="b")
    assert words.headline(both, ["a"], 10, 1149, [elsewhere]) == said
    assert words.headline(both, ["b"], 10, 1149, [elsewhere]).endswith(fault.title)
    assert words.headline({}, [], 1, 1149, []) == "1 image in place of 1,149"
    assert words.headline({"a": {"distilled": probe_entry(50)}}, [], 1, None, []) == (
        "1 image teaches 50.0\u00a0%"
    )
    assert words.headline({"a": {"full": probe_entry(50)}}, [], None, 1149, []) is None


def test_differences_are_judged_by_the_paired_test_where_there_is_one():
    entries = {"distilled": probe_entry(80.0, 0.0), "random": probe_entry(78.0, 0.0)}
    # Of 400 independent images: 2.0 and 2.1 points, together 2.9.
    assert doubtful(entries, 400) == ["random"]
    assert difference_error(entries, "random", "distilled", 400) == pytest.approx(2.88, abs=0.01)
    test = {"difference": 2.0, "standard_error": 0.7, "p": 0.004}
    entries["distilled"]["against"] = {"random": test}
    assert difference_error(entries, "random", "distilled", 400) == 0.7
    assert doubtful(entries, 400) == []


def test_best_run_is_named_unless_it_is_at_fault(tmp_path):
    folders = [write_run(tmp_path / name, seed=i) for i, name in enumerate("abc")]
    for folder, mean in zip(folders, (75.0, 85.0, 50.0), strict=True):
        change(folder, distilled=probe_entry(mean))
    compared = compare.name_runs([view.read_run(folder) for folder in folders])
    found = compare.describe_best(compared)
    assert (found["title"], found["next"], found["mean"]) == ("near (b)", "near (a)", 85.0)
    # 10 points on 80 images.
    assert found["unsure"]
    # The images that both name rightly do not count, if they are known.
    labels = np.arange(80, dtype=np.int32) % 4
    for folder, wrong in zip(folders, (20, 12), strict=False):
        named = np.where(np.arange(80) < wrong, (labels + 1) % 4, labels)[None]
        predictions.add(folder / runs.PREDICTIONS, "near", "distilled", named, "test", labels)
    assert not compare.describe_best(compared)["unsure"]
    # The third has worse images than random ones, so the first two have nobody to share a model.
    assert compare.describe_best(compared[::2]) is None
    # On a backbone that nobody else has, a fault says nothing about those that they share.
    results = compared[0].view.results
    results["probe"]["elsewhere"] = {"distilled": probe_entry(1.0), "random": probe_entry(60.0)}
    assert compare.describe_best(compared)["title"] == "near (b)"
    results["final_loss"] = math.inf
    assert compare.describe_best(compared) is None


def test_card_is_for_a_slide(tmp_path):
    folder = write_run(tmp_path / "run")
    assert write(folder) == 0
    with Image.open(folder / runs.CARD) as card:
        assert card.size == (1600, 900)
        colours = {colour for _, colour in card.convert("RGB").getcolors(1 << 20)}
    # That of the distilled row, and of paper.
    assert {(0xB2, 0x3A, 0x12), (0xFA, 0xF9, 0xF7)} <= colours


def test_grid_is_as_wide_as_asked():
    images = np.zeros((10, 32, 32, 3), np.float32)
    names = [f"class {i}" for i in range(10)]
    assert grid.draw_grid(images, names).size[0] == 4 * (128 + 8) + 8
    wide = grid.draw_grid(images, names, 5, 1920)
    assert 1920 <= wide.size[0] < 1920 + 5 * 32
    # Large images stay as they are.
    large = np.zeros((4, 300, 300, 3), np.float32)
    assert grid.draw_grid(large, [""] * 4).size[0] == 2 * (300 + 8) + 8


def test_names_are_written_with_a_font_that_has_their_letters(capsys):
    plain = grid.find_font(["golden_retriever"], 20)
    assert plain.getname() == ImageFont.load_default(20).getname()
    # No font of Pillow's has Hebrew; DejaVu has.
    lacking = grid.find_lacking(ImageFont.load_default(20), "a\u05d7")
    assert lacking == ["\u05d7"]
    found = grid.find_font(["\u05d7\u05ea\u05d5\u05dc"], 20)
    said = capsys.readouterr().out
    if not said:
        assert grid.find_lacking(found, "\u05d7\u05ea") == []


def test_letters_that_no_font_has_are_named_once(capsys, monkeypatch):
    monkeypatch.setattr(grid, "list_fonts", list)
    grid.choose_font.cache_clear()
    for _ in range(2):
        grid.find_font(["\u05d7\u05ea"], 20)
    said = capsys.readouterr().out
    assert said == "note: no font of this machine has all letters of the names: \u05d7 \u05ea\n"
    grid.choose_font.cache_clear()
