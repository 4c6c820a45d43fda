"""The page of a run and the comparison of several, from run folders made by hand."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from etils import epath
from PIL import Image

import launch
from lgm_jax import runs
from lgm_jax.distilled import save_distilled
from lgm_jax.report import __main__ as command
from lgm_jax.report import charts, gallery, page, pictures, timelapse
from tests.run_folders import NAMES, blobs, write_run


class Tags(HTMLParser):
    """Start tags of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def write(*arguments):
    """Runs `python -m lgm_jax.report` in this process; gives its exit code."""
    return command.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four classes with its page; not to be changed."""
    folder = write_run(
        tmp_path_factory.mktemp("runs") / "first", groups={"left": 90.0, "right": 7.0}
    )
    assert write(folder) == 0
    return folder


@pytest.fixture(scope="module")
def text(run):
    return (run / "report.html").read_text()


def test_page_says_what_how_good_and_what_next(text):
    for words in (
        "4 images in place of 200",
        "Nobody drew or photographed these images",
        "<strong>80.5 %</strong> of unseen test images",
        "as many random real ones, 60.0 %",
        "Linear Gradient Matching",
        "load_distilled(&#34;runs/first&#34;)",
        "python launch.py --config=configs/quickstart.py --workdir=runs/first",
        "f" * 64,
        "worst group",
    ):
        assert words in text, words
    assert "Still distilling" not in text


def test_page_holds_everything_it_shows(text):
    tags = Tags(text)
    sources = [image["src"] for image in tags.of("img")]
    assert len(sources) == 4 * (1 + 3) + 3 + 4, "cards, frames and thumbnails"
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(image["alt"] for image in tags.of("img"))
    assert not [s for s in tags.of("script") if "src" in s]
    assert [link["href"] for link in tags.of("link")] == ["data:,"]
    (policy,) = [m["content"] for m in tags.of("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data: file: 'self'")


def test_error_bars_span_the_standard_deviation(text):
    whiskers = [
        (float(line["x1"][:-1]), float(line["x2"][:-1]))
        for line in Tags(text).of("line")
        if line.get("class") == "whisker"
    ]
    assert (79.5, 81.5) in whiskers


def test_names_from_data_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    folder = write_run(
        tmp_path / "evil", names=(evil, "b", "c", "d"), backbone=evil, groups={evil: 1.0}
    )
    other = write_run(tmp_path / "other", names=(evil, "b", "c", "d"), backbone=evil)
    assert write(folder, f"--beside={other}") == 0
    assert write(folder, other, f"--out={tmp_path / 'both.html'}") == 0
    for file in (folder / "report.html", tmp_path / "both.html"):
        text = file.read_text()
        assert "alert(1)" in text
        assert "<script>alert" not in text
        assert len(Tags(text).of("script")) == 1
        named = [tag["data-name"] for _, tag in Tags(text).found if "data-name" in tag]
        assert named[0] == evil


def test_hundred_noisy_classes_take_less_than_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(100)]
    noise = rng.random((100, 256, 256, 3), np.float32)
    folder = write_run(tmp_path / "noise", names=names, images=noise, side=256, steps=(10, 20))
    assert write(folder) == 0
    assert 1e6 < (tmp_path / "noise" / "report.html").stat().st_size < 10e6
    assert not (folder / "report").exists()


def test_many_classes_have_pictures_beside_the_page(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    folder = write_run(tmp_path / "many", names=names, side=8)
    assert write(folder) == 0
    images = Tags((folder / "report.html").read_text()).of("img")
    assert len(images) == 1000 * 4 + 3 + 100
    assert {image["loading"] for image in images} == {"lazy"}
    assert all((folder / image["src"]).is_file() for image in images)
    # Its own page does not keep the pictures of the one before.
    (folder / "report" / "stale.webp").write_bytes(b"")
    assert write(folder) == 0
    assert not (folder / "report" / "stale.webp").exists()


def test_unfinished_run_has_a_page_with_its_current_images(tmp_path):
    folder = write_run(tmp_path / "going", finished=False)
    images = blobs(np.random.default_rng(1), 4, 32)
    page.write_unfinished_page(folder, 20, images, np.arange(4, dtype=np.int32), NAMES)
    text = (folder / "report.html").read_text()
    assert "Still distilling: step 20 of 30" in text
    assert "0.0500 at step 20" in text
    assert "0.0333" not in text, "a loss from after that step"
    assert len(Tags(text).of("img")) == 4 + 2


def test_unfinished_run_of_many_classes_shows_some(tmp_path):
    names = [f"class {i}" for i in range(300)]
    folder = write_run(tmp_path / "going", names=names, finished=False)
    images = blobs(np.random.default_rng(1), 300, 8)
    page.write_unfinished_page(folder, 20, images, np.arange(300, dtype=np.int32), names)
    text = (folder / "report.html").read_text()
    assert "100 of the 300 classes" in text
    assert "300 images in place of 15,000" in text
    assert 'data-name="class 299"' in text


def test_run_without_pictures_is_read_from_its_distilled_images(tmp_path, run):
    folder = write_run(tmp_path / "old")
    (folder / runs.GALLERY).unlink()
    images = blobs(np.random.default_rng(1), 4, 32)
    save_distilled(folder / runs.DISTILLED, images, np.arange(4, dtype=np.int32), NAMES)
    assert write(folder) == 0
    assert len(Tags((folder / "report.html").read_text()).of("img")) == 4 + 3


def test_several_images_per_class_share_a_card(tmp_path):
    folder = write_run(tmp_path / "seven", ipc=7)
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert text.count('class="card"') == 4
    assert text.count('class="row"') == 4 * 5
    assert "The first 5 of 7 images of each class are shown" in text
    assert "28 images in place of 200" in text


def test_other_runs_images_lie_beside(tmp_path, run):
    folder = write_run(tmp_path / "own")
    assert write(folder, f"--beside={run}") == 0
    text = (folder / "report.html").read_text()
    assert text.count('data-title="distilled for near"') == 4
    (expected,) = pictures.shrink([page.first_pictures(page.read_run(run).gallery)[2]], 160)
    assert pictures.data_uri(expected) in text


def test_comparison_sets_classes_side_by_side(tmp_path, run):
    other = write_run(tmp_path / "other", names=NAMES[::-1], backbone="far", seed=1)
    out = tmp_path / "deep" / "compare.html"
    assert write(run, other, f"--out={out}") == 0
    text = out.read_text()
    rows = re.findall(r'<tr data-name="(\w+)">.*?</tr>', text, re.DOTALL)
    assert rows == list(NAMES)
    alts = [image["alt"] for image in Tags(text).of("img")]
    assert alts[:2] == ["zero, distilled for near", "zero, distilled for far"]
    # The other run orders its classes the other way round.
    expected = page.first_pictures(page.read_run(other).gallery)[3]
    assert Tags(text).of("img")[1]["src"] == pictures.data_uri(expected)
    assert text.count('class="mine"') == 2
    assert len([p for p in Tags(text).of("path") if p["class"].startswith("line")]) == 2
    assert "different images or splits" not in text


def test_comparison_of_many_classes_has_pictures_beside_it(tmp_path):
    names = [f"class {i}" for i in range(250)]
    a, b = (write_run(tmp_path / name, names=names, side=8) for name in "ab")
    out = tmp_path / "compare.html"
    assert write(a, b, f"--out={out}") == 0
    images = Tags(out.read_text()).of("img")
    assert len(images) == 500
    assert all((tmp_path / image["src"]).is_file() for image in images)


def refuse(capsys, *arguments):
    """Must end with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert write(*arguments) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err


def test_runs_of_other_classes_are_refused_with_the_reason(tmp_path, run, capsys):
    other = write_run(tmp_path / "other", names=("zero", "one", "two", "seven"))
    out = tmp_path / "compare.html"
    line = refuse(capsys, run, other, f"--out={out}")
    assert "another set of classes" in line
    assert "lacks 'three' and has 'seven'" in line
    assert not out.exists()
    assert "another set of classes" in refuse(capsys, other, f"--beside={run}")
    more = write_run(tmp_path / "more", names=(*NAMES, "four"))
    assert "has 'four'" in refuse(capsys, run, more, f"--out={out}")
    twice = write_run(tmp_path / "twice", names=("crane", "crane", "a"))
    turned = write_run(tmp_path / "turned", names=("a", "crane", "crane"))
    assert "share a name" in refuse(capsys, twice, turned, f"--out={out}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no run"),
        (("nowhere",), "nowhere is no run's folder"),
        (("RUN", "--out=x.html"), "--out is for several runs"),
        (("RUN", "RUN"), "--out=compare.html"),
        (("RUN", "RUN", "--out=x.html", "--beside=RUN"), "--beside"),
        (("RUN", "--what"), "--what"),
        (("RUN", "nowhere", "--out=x.html"), "nowhere"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, run, capsys):
    assert words in refuse(capsys, *(a.replace("RUN", str(run)) for a in arguments))


def test_damaged_and_unfinished_folders_are_named(tmp_path, run, capsys):
    damaged = write_run(tmp_path / "damaged")
    (damaged / runs.GALLERY).write_bytes(b"PK")
    assert "gallery.npz is damaged" in refuse(capsys, damaged)
    going = write_run(tmp_path / "going", finished=False)
    out = f"--out={tmp_path / 'x.html'}"
    assert "no distilled images yet" in refuse(capsys, run, going, out)
    (going / runs.METRICS).write_text("{}\n")
    assert "metrics.jsonl is damaged" in refuse(capsys, going)


def test_command_line_explains_itself(capsys):
    assert write("--help") == 0
    assert "--beside" in capsys.readouterr().out


def test_importing_the_package_brings_no_template_engine():
    code = "import sys, lgm_jax, lgm_jax.report.page; print('jinja2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_gallery_comes_back_as_it_was_saved(run, tmp_path):
    found = gallery.load_gallery(run / runs.GALLERY)
    gallery.save_gallery(epath.Path(tmp_path / "again.npz"), found)
    again = gallery.load_gallery(epath.Path(tmp_path / "again.npz"))
    assert again.files == found.files
    assert set(found.files) == {"distilled", *gallery.REALS}
    assert again.class_names == found.class_names == list(NAMES)
    for name in ("real", "labels", "syn", "explained"):
        np.testing.assert_array_equal(getattr(again.map, name), getattr(found.map, name))


def test_small_pictures_lose_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for image, webp in zip(images, pictures.encode(images, 256), strict=True):
        with Image.open(io.BytesIO(webp)) as picture:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), image)


def test_first_images_of_each_class_are_shown():
    labels = np.asarray([1, 0, 1, *[0] * 6, 1], np.int32)
    assert gallery.shown(labels).tolist() == [1, 3, 4, 5, 6, 0, 2, 9]


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


def test_map_keeps_what_varies_most():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(200, 2)) * [[5, 2]]
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    features = (plane @ turn + 3).astype(np.float32)
    found = gallery.make_map(features, np.zeros(200, np.int32), features[:4])
    assert np.isclose(found.explained.sum(), 1, atol=1e-4)
    assert found.explained[0] > found.explained[1]
    # A rotation keeps distances, and synthetic images lie where real ones of their features do.
    np.testing.assert_allclose(
        np.linalg.norm(found.real[0] - found.real[1]),
        np.linalg.norm(plane[0] - plane[1]),
        rtol=1e-4,
    )
    np.testing.assert_allclose(found.syn, found.real[:4], atol=1e-4)


def test_map_of_two_images_has_a_plane():
    features = np.asarray([[0, 0, 1], [0, 2, 1]], np.float32)
    found = gallery.make_map(features, np.arange(2, dtype=np.int32), features)
    np.testing.assert_allclose(found.real, [[-1, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 5000.0, [0, 2000, 4000, 6000]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.0, 0.0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert charts.ticks(low, high) == expected


def test_long_curves_are_thinned_to_their_last_point():
    path = charts.curve([(float(i), 0.0) for i in range(5001)], (0.0, 5000.0), (0.0, 1.0))
    assert path.count("L") < 410
    assert path.endswith(f"{charts.WIDTH:.1f} {charts.HEIGHT:.1f}")


def test_spread_ends_with_the_last():
    assert pictures.spread(3, 5) == [0, 1, 2]
    assert pictures.spread(100, 4) == [24, 49, 74, 99]
    assert pictures.spread(1, 1) == [0]


def test_sheets_have_full_rows_where_they_can():
    assert [pictures.sheet_columns(count) for count in (1, 4, 7, 10, 100)] == [1, 2, 4, 5, 10]


def test_sheets_are_bounded_in_number():
    kept = [step for step in range(1, 5001) if timelapse.is_kept(step, 5000, 1)]
    assert len(kept) <= 65
    assert kept[-1] == 5000
    assert [s for s in range(1, 801) if s % 100 == 0 and timelapse.is_kept(s, 800, 100)] == list(
        range(100, 801, 100)
    )
    # Fewer steps than one picture takes.
    assert timelapse.is_kept(5, 5, 100)


def test_sheets_are_found_by_step_and_chosen_to_fit(run):
    sheets = timelapse.find_sheets(run / runs.TIMELAPSE)
    assert [sheet.step for sheet in sheets] == [10, 20, 30]
    assert [s.step for s in timelapse.find_sheets(run / runs.TIMELAPSE, up_to=20)] == [10, 20]
    assert timelapse.choose([5, 5, 5, 5], 10) == [1, 3]
    assert timelapse.choose([5, 5], 1) == [1]
    assert timelapse.choose([], 1) == []


def test_animation_has_a_frame_per_sheet(run, tmp_path):
    sheets = timelapse.find_sheets(run / runs.TIMELAPSE)
    timelapse.write_animation(epath.Path(tmp_path / "t.webp"), sheets)
    with Image.open(tmp_path / "t.webp") as animation:
        assert animation.n_frames == 3
        assert animation.size == (2 * 128 + 6, 2 * 128 + 6)
    timelapse.write_animation(epath.Path(tmp_path / "none.webp"), [])
    assert not (tmp_path / "none.webp").exists()


def test_command_is_recorded_without_folders_of_the_machine():
    argv = ["launch.py", "--config", "/home/me/c.py", "--config.eval_backbones=/a/b,x/y"]
    argv += ["--workdir=runs/w", "--config.real.cache=gs://bucket/c", "--config.data.folder=~/p q"]
    assert launch.shown_command(argv) == (
        "python launch.py --config=c.py --config.eval_backbones=b,x/y --workdir=runs/w "
        "--config.real.cache=c '--config.data.folder=p q'"
    )


def test_results_of_a_run_without_images_make_a_page(tmp_path):
    folder = write_run(tmp_path / "baselines")
    (folder / runs.GALLERY).unlink()
    results = json.loads((folder / runs.RESULTS).read_text())
    for entries in results["probe"].values():
        del entries["distilled"]
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "Real images of shapes" in text
    assert 'id="images"' not in text
