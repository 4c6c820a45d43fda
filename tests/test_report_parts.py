"""What pages are made of: pictures, charts, sheets, commands and words."""

import dataclasses
import io

import numpy as np
import pytest
from etils import epath
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lgm_jax import runs
from lgm_jax.names import join
from lgm_jax.report import (
    charts,
    commands,
    feature_map,
    gallery,
    judge,
    page,
    pictures,
    plane,
    timelapse,
    view,
    vocabulary,
    words,
)
from lgm_jax.report.pictures import Place
from tests.run_folders import NAMES, probe_entry


def test_gallery_comes_back_as_it_was_saved(reported, tmp_path):
    found = gallery.load_gallery(reported / runs.GALLERY)
    gallery.save_gallery(epath.Path(tmp_path / "again.npz"), found)
    again = gallery.load_gallery(epath.Path(tmp_path / "again.npz"))
    assert again.files == found.files
    assert set(found.files) == {"distilled", *gallery.REALS}
    assert again.class_names == found.class_names == list(NAMES)
    for name in ("real", "labels", "syn", "explained", "separates"):
        np.testing.assert_array_equal(getattr(again.map, name), getattr(found.map, name))


def test_small_pictures_lose_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for image, webp in zip(images, pictures.encode(images, 256), strict=True):
        with Image.open(io.BytesIO(webp)) as picture:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), image)


def test_first_images_of_each_class_are_shown():
    labels = np.asarray([1, 0, 1, *[0] * 6, 1], np.int32)
    assert gallery.shown(labels).tolist() == [1, 3, 4, 5, 6, 0, 2, 9]


@pytest.mark.parametrize(
    ("classes", "ipc", "expected"),
    [(4, 7, 5), (50, 4, 4), (50, 5, 4), (67, 5, 2), (100, 3, 2), (100, 1, 1), (101, 5, 5)],
)
def test_one_file_shows_no_more_images_than_fit(classes, ipc, expected):
    labels = np.tile(np.arange(classes, dtype=np.int32), ipc)
    rows = gallery.shown(labels)
    np.testing.assert_array_equal(np.bincount(labels[rows]), expected)
    assert gallery.fits_one_file(classes) == (classes <= 100)
    assert len(rows) <= 200 or classes > 100


def test_hundred_classes_of_many_images_are_one_file():
    labels = np.tile(np.arange(100, dtype=np.int32), 3)
    images = np.zeros((300, 8, 8, 3), np.float32)
    made = gallery.make_gallery(images, labels, [f"class {i}" for i in range(100)])
    assert (len(made.labels), made.total) == (200, 3)


def test_real_images_stand_beside_those_of_their_class():
    # Two of each of two classes, interleaved; class-by-class indices tell class and number.
    labels = np.asarray([1, 0, 1, 0], np.int32)
    rows = gallery.real_rows(
        labels, np.asarray([10, 11, 20, 21]), np.arange(4), np.asarray([30, 31, 40, 41])
    )
    assert gallery.shown(labels).tolist() == [1, 3, 0, 2]
    assert rows["centroids"].tolist() == [10, 11, 20, 21]
    assert rows["neighbors"].tolist() == [1, 3, 0, 2]
    assert rows["random"].tolist() == [30, 31, 40, 41]


def test_map_of_one_class_keeps_what_varies_most():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(200, 2)) * [[5, 2]]
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    features = (flat @ turn + 3).astype(np.float32)
    found = plane.make_map(features, np.zeros(200, np.int32), features[:4])
    assert not found.separates
    assert np.isclose(found.explained.sum(), 1, atol=1e-4)
    assert found.explained[0] > found.explained[1]
    # A rotation keeps distances, and synthetic images lie where real ones of their features do.
    np.testing.assert_allclose(
        np.linalg.norm(found.real[0] - found.real[1]),
        np.linalg.norm(flat[0] - flat[1]),
        rtol=1e-4,
    )
    np.testing.assert_allclose(found.syn, found.real[:4], atol=1e-4)


def test_map_of_two_images_has_a_plane():
    features = np.asarray([[0, 0, 1], [0, 2, 1]], np.float32)
    found = plane.make_map(features, np.arange(2, dtype=np.int32), features)
    np.testing.assert_allclose(found.real, [[-1, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2])
def test_map_of_one_feature_lies_on_a_line(classes):
    features = np.arange(12, dtype=np.float32)[:, None]
    found = plane.make_map(features, np.arange(12, dtype=np.int32) % classes, features[:3])
    assert found.real.shape == (12, 2)
    assert np.ptp(found.real, axis=0).min() == 0


@pytest.mark.parametrize("classes", [2, 5])
def test_map_separates_classes(classes):
    """However little of the variance lies between them."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes, dtype=np.int32), 60)
    features = rng.normal(size=(len(labels), 8)) * ([10] * 4 + [1] * 4)
    # Means differ in two directions that vary little within classes.
    features[:, 4:6] += 8 * rng.normal(size=(classes, 2))[labels]
    found = plane.make_map(features.astype(np.float32), labels, features[:3].astype(np.float32))
    assert found.separates
    np.testing.assert_allclose(found.syn, found.real[:3], atol=1e-3)
    expected = LinearDiscriminantAnalysis().fit(features, labels).score(features, labels)
    axes = found.real if classes > 2 else found.real[:, :1]
    scored = LinearDiscriminantAnalysis().fit(axes, labels).score(axes, labels)
    assert scored > 0.9 * expected > 0.7
    assert found.explained.sum() > 0.8
    assert (found.explained[1] < 1e-6) == (classes == 2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 5000.0, [0, 2000, 4000, 6000]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.0, [0, 0.25, 0.5, 0.75, 1]),
        # An objective's own loss may be of any size.
        (0.0, 1e-14, [0, 2.5e-15, 5e-15, 7.5e-15, 1e-14]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert charts.ticks(low, high) == expected


def test_long_curves_are_thinned_to_their_last_point():
    path = charts.curve([(float(i), 0.0) for i in range(5001)], 5000.0, 0.0, 1.0)
    assert path.count("L") < 410
    assert path.endswith(f"{charts.WIDTH:.1f} {charts.HEIGHT:.1f}")


def test_curve_of_one_point_is_a_dot():
    """A line of no length, which round ends show."""
    (only,) = charts.describe_losses([("loss", [(1, 0.5)])], steps=1)["curves"]
    # Between 0 and 0.6, the highest tick.
    assert only["path"] == f"M{charts.WIDTH:.1f} {charts.HEIGHT / 6:.1f}h0"
    assert only["first"] == only["last"] == (1, 0.5)


def test_spread_ends_with_the_last():
    assert pictures.spread(3, 5) == [0, 1, 2]
    assert pictures.spread(100, 4) == [24, 49, 74, 99]
    assert pictures.spread(1, 1) == [0]
    assert pictures.spread_with_ends(3, 3) == [0, 1, 2]
    assert pictures.spread_with_ends(9, 4) == [0, 2, 5, 8]


def test_sheets_have_full_rows_where_they_can():
    columns = [pictures.sheet_layout(count, 32).columns for count in (1, 4, 7, 10, 100)]
    assert columns == [1, 2, 4, 5, 10]
    # Small images stay as they are; large ones have room by their number.
    cells = [pictures.sheet_layout(count, 224).cell for count in (10, 36, 100)]
    assert cells == [160, 128, 96]
    assert pictures.sheet_layout(100, 32).cell == 32


@pytest.mark.parametrize("side", [32, 96])
def test_sheets_hold_images_without_their_neighbours(side):
    """Black beside white: a lossy file would carry specks of one into the other."""
    images = np.zeros((4, side, side, 3), np.float32)
    images[1::2] = 1
    layout = pictures.sheet_layout(4, side)
    with Image.open(io.BytesIO(pictures.draw_sheet(images))) as sheet:
        assert sheet.size == layout.size
        whole = np.asarray(sheet.convert("RGB"), int)
    for i, image in enumerate(images):
        x, y = layout.corner(i)
        cell = whole[y : y + layout.cell, x : x + layout.cell]
        assert np.abs(cell - 255 * image[0, 0, 0]).max() <= 1


def test_sheets_are_thirty_and_denser_early():
    kept = [step for step in range(5001) if timelapse.is_kept(step, 5000)]
    assert len(kept) == 30
    assert (kept[0], kept[-1]) == (0, 5000)
    assert (np.diff(kept, 2) >= 0).mean() > 0.9
    assert kept[15] < 5000 / 3
    # Fewer steps than sheets.
    assert [step for step in range(6) if timelapse.is_kept(step, 5)] == [0, 1, 2, 3, 4, 5]
    assert timelapse.is_kept(1, 1)


def test_sheets_are_found_by_step_and_chosen_to_fit(reported):
    sheets = timelapse.find_sheets(reported / runs.TIMELAPSE)
    assert [sheet.step for sheet in sheets] == [10, 20, 30]
    assert [s.step for s in timelapse.find_sheets(reported / runs.TIMELAPSE, up_to=20)] == [10, 20]
    assert timelapse.choose([5, 5, 5, 5], 10) == [0, 3]
    assert timelapse.choose([5] * 9, 20) == [0, 2, 5, 8]
    assert timelapse.choose([5, 5], 1) == [1]
    assert timelapse.choose([], 1) == []


def test_animation_has_a_frame_per_sheet(reported, tmp_path):
    sheets = timelapse.find_sheets(reported / runs.TIMELAPSE)
    timelapse.write_animation(epath.Path(tmp_path / "t.webp"), sheets, 4, 32)
    with Image.open(tmp_path / "t.webp") as animation:
        assert animation.n_frames == 3
        assert animation.size == (2 * (160 + 16), 2 * (160 + 16))
    # Nothing to animate, or sheets of an earlier version's layout.
    for number, (found, count) in enumerate([([], 4), (sheets, 9)]):
        timelapse.write_animation(epath.Path(tmp_path / f"{number}.webp"), found, count, 32)
        assert not (tmp_path / f"{number}.webp").exists()


def test_differences_within_two_standard_errors_may_be_chance():
    entries = {
        "distilled": probe_entry(90.0, 0.0),
        "centroids": probe_entry(87.0, 0.0),
        "random": probe_entry(70.0, 0.0),
        "full": probe_entry(90.0, 0.0),
    }
    # Of 400 images: 1.5 and 1.7 points, together 2.3.
    assert judge.doubtful(entries, 400) == ["centroids", "full"]
    assert judge.doubtful(entries, 4000) == ["full"]
    # What repetitions differ in counts, too.
    entries["random"] = probe_entry(70.0, 15.0)
    assert judge.doubtful(entries, 4000) == ["random", "full"]
    assert words.compare(entries) == [
        "3.0 points more than with typical real images",
        "20.0 more than with random real images",
        "as many as with all real images",
    ]
    said = words.doubt(entries, 400, 3, made_here=True)
    assert said == (
        "Measured on 400 images for one distillation (seed 3). The differences to typical, random "
        "and all real images may be chance. Another seed gives other images and other numbers."
    )
    # One training says nothing of the spread.
    assert "Training was not repeated" in words.doubt(
        entries, 400, 3, made_here=True, repeated=False
    )
    # Of how many nobody knows, and of images from elsewhere.
    assert words.doubt(entries, None, 3, made_here=False) == "Measured for one set of images."
    clear = {"distilled": entries["distilled"], "centroids": probe_entry(50.0)}
    assert "chance" not in words.doubt(clear, 400, 3, made_here=True)
    assert judge.gap({"distilled": probe_entry(80), "random": probe_entry(80)}) is None
    assert judge.gap(clear | {"random": probe_entry(70), "full": probe_entry(95)}) == 0.8
    assert judge.gap(clear | {"random": probe_entry(88), "full": probe_entry(90)}) is None


def test_durations_and_devices_are_said_in_words():
    assert [words.duration(s) for s in (0.4, 73.0, 600.0, 7500.0)] == [
        "0 s",
        "73 s",
        "10 min",
        "2 h 5 min",
    ]
    assert words.devices(["cpu"]) == "1 CPU"
    assert words.devices(["H100"] * 8 + ["cpu"]) == "8 x H100, 1 CPU"
    assert join(["a", "b", "c"]) == "a, b and c"


def test_commands_are_changed_and_their_folders_found():
    command = (
        "python launch.py --config=c.py --config.seed=3 '--config.data.folder=p q' --workdir=w/x"
    )
    assert commands.folder(command, "x") == "w/x"
    # It was renamed, or nothing is known of it.
    assert commands.folder(command, "y") == commands.folder(None, "y") == "y"
    assert commands.changed(command, {"--config.seed": 4, "--workdir": "runs/again"}) == (
        "python launch.py --config=c.py '--config.data.folder=p q' --config.seed=4 "
        "--workdir=runs/again"
    )


@pytest.mark.parametrize(
    ("backbone", "side", "expected"),
    [
        ("digits_contrastive", 32, "inputs = jax.numpy.asarray(images)\n"),
        ("dinov2_vits14", 256, "asarray(images[:, 16:240, 16:240])\n"),
        # Neither a folder's weights nor smaller images can be said to fit.
        ("mine-01234567", 256, None),
        ("dinov2_vits14", 32, None),
        ("dinov2_vits14", None, None),
    ],
)
def test_code_to_load_runs_the_backbone_where_it_fits(backbone, side, expected):
    shown = gallery.Gallery(["a", "b", "c"], np.arange(3), 1, {}, None, side)
    results = {"steps": 1, "backbones": [backbone], "num_classes": 3, "ipc": 2}
    run = view.RunView(epath.Path("x"), {}, results, [], [], shown, [])
    text = commands.load(run, "runs/x")
    compile(text, "code", "exec")
    assert "['a', 'b', ...]" in text
    assert ("backbones.load" in text) == (expected is not None)
    assert expected is None or expected in text
    soft = dataclasses.replace(run, results=results | {"labels": {"kind": "soft"}})
    assert "probabilities" in commands.load(soft, "x")


def test_axis_of_accuracies_encloses_them_and_guessing_where_it_is_near():
    assert charts.percent_range([70.2], [96.3], 10.0) == (60, 100)
    assert charts.percent_range([70.2], [96.3], 50.0) == (40, 100)
    assert charts.percent_range([99.5], [100.0], 0.1) == (90, 100)
    assert charts.percent_range([0.1], [5.0], 0.1) == (0, 10)


def test_thumbnails_that_hide_each_other_are_moved_apart():
    places = np.asarray([[0.5, 0.5], [0.5, 0.5], [0.52, 0.5], [0.9, 0.2], [1.0, 1.0]])
    moved = feature_map.move_apart(places, (0.1, 0.1), 0.5)
    # Sides of the boxes, in parts of width and height.
    apart = np.abs(moved[:, None] - moved[None]) / np.asarray([0.1, 0.2])
    assert (apart.max(axis=-1) + 2 * np.eye(5) > 0.98).all()
    np.testing.assert_array_equal(moved[3], places[3])
    np.testing.assert_allclose(moved[4], [0.95, 0.9])
    # Seven that fill more than a row give way to the other side.
    slant = np.stack([0.07 + 0.123 * np.arange(7), 0.41 - 0.043 * np.arange(7)], axis=1)
    moved = feature_map.move_apart(slant, (0.2, 0.16), 1.1)
    apart = np.abs(moved[:, None] - moved[None]) / np.asarray([0.2, 0.16 / 1.1])
    assert (apart.max(axis=-1) + 2 * np.eye(7) > 0.98).all()


def test_no_thumbnail_of_the_map_covers_a_name_on_a_phone():
    rng, labels = np.random.default_rng(0), np.arange(10, dtype=np.int32)
    real = rng.uniform(size=(50, 2)).astype(np.float32)
    # Three at the lower edge, where names have the least room.
    low = np.array([[0.5, 0.0], [0.51, 0.01], [0.5, 0.12]])
    high = np.stack([np.arange(7) % 4 / 3, 0.6 + np.arange(7) // 4 / 3], axis=1)
    syn = np.concatenate([low, high]).astype(np.float32)
    near = plane.Map(real, np.arange(50) % 10, syn, np.array([0.4, 0.2], np.float32), True)
    names = [f"class {label}" for label in labels]
    made = gallery.make_gallery(np.zeros((10, 8, 8, 3), np.float32), labels, names, {}, near)
    thumbs = feature_map.describe_map(made, Place())["thumbs"]
    # A map of 358 x 394 pixels, thumbnails of 34, and names 20 high below them.
    x, y = np.array([thumb["narrow"] for thumb in thumbs]).T * [[3.58], [3.94]]
    assert (y + 17 + 20 <= 394).all()
    apart = np.maximum(np.abs(x[:, None] - x) / 70, np.abs(y[:, None] - y) / 55)
    assert (apart + 2 * np.eye(10)).min() >= 1


def test_real_picture_of_two_kinds_is_shown_once(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.float32)
    reals = {kind: np.zeros((2, 8, 8, 3), np.uint8) for kind in gallery.REALS}
    reals["random"][:] = 9
    reals["neighbors"][1] = 5
    made = gallery.make_gallery(images, np.arange(2, dtype=np.int32), ["a", "b"], reals)
    assert made.side == 8
    assert [said["name"] for said in page.describe_reals(made, 0)] == [
        "typical and look-alike real",
        "random real",
    ]
    assert len(page.describe_reals(made, 1)) == 3


def test_growth_is_marked_where_a_finer_level_joins():
    settings = {"images.kind": "pyramid", "images.grow_every": 100, "images.start_resolution": 4}
    expected = [(100, "8 px"), (200, "16 px"), (300, "32 px")]
    assert charts.describe_growth(settings, 32) == expected
    later = charts.describe_growth(settings | {"images.grow_delay": 1}, 32)
    assert [step for step, _ in later] == [101, 201, 301]
    assert charts.describe_growth(settings | {"images.kind": "pixels"}, 32) == []
    assert charts.describe_growth(settings, None) == []
    found = charts.describe_losses([("a", [(0, 1.0), (1000, 0.5)])], 0, expected)
    assert [mark["wide"] for mark in found["marks"]] == [True] * 3
    assert [mark["narrow"] for mark in found["marks"]] == [True, False, True]


def test_losses_that_are_not_finite_are_left_out():
    found = charts.describe_losses(
        [("a", [(1, 2.0), (2, float("nan"))]), ("b", [(1, float("inf"))])]
    )
    assert [(curve["name"], curve["last"]) for curve in found["curves"]] == [("a", (1, 2.0))]


@pytest.mark.parametrize(("ground", "scheme"), [("#f0eeea", 0), ("#242220", 1)])
def test_dots_of_every_class_stand_out_from_the_ground_of_a_map(ground, scheme):
    def light(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(parts > 0.04045, ((parts + 0.055) / 1.055) ** 2.4, parts / 12.92)

    back = light(ground) @ [0.2126, 0.7152, 0.0722] + 0.05
    colours = [pair[scheme] for count in range(2, 31) for pair in vocabulary.class_colours(count)]
    ratios = [(light(colour) @ [0.2126, 0.7152, 0.0722] + 0.05) / back for colour in colours]
    # WCAG's for graphics, with what is lost to an opacity of 0.9.
    assert min(max(ratio, 1 / ratio) for ratio in ratios) > 3.3
