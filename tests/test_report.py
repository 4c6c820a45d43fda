"""The page of a run and the comparison of several, from run folders made by hand."""

import dataclasses
import html
import io
import json
import re
import shlex
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from lgm_jax import files, runs
from lgm_jax.distilled import save_distilled
from lgm_jax.report import __main__ as command
from lgm_jax.report import (
    accuracies,
    cards,
    charts,
    commands,
    compare,
    gallery,
    losses,
    page,
    pictures,
    timelapse,
    view,
    words,
)
from tests.run_folders import NAMES, blobs, probe_entry, write_run


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
    for part in (
        "4 images in place of 200",
        "Nobody drew or photographed these images",
        "they began as random noise, and for 30 steps",
        "Each is 32 \u00d7 32 pixels",
        "<strong>80.5 %</strong> of 80 unseen test images correctly: 20.5 points more than with as "
        "many random real ones, 10.5 more than with the most typical real ones, 15.5 more than "
        "with real look-alikes and 14.5 fewer than with all real ones. Guessing gives 25 %.",
        "Measured on 80 images for one distillation (seed 0). The difference to typical real "
        "images may be chance.",
        "on near <span>The model they were made for.",
        "On far <span>Not the model they were made for.",
        "go 59 % of the way from random to all real images",
        "Linear Gradient Matching",
        "load_distilled(&#39;runs/first&#39;)",
        "# images: float32 (4, 32, 32, 3)",
        "distilled on</dt><dd>2026-01-02 (UTC)",
        "1 CPU",
        "time to distil</dt><dd>3 s",
        "All 10 settings, 1 of them changed",
        "f" * 64,
        "worst group",
    ):
        assert part in text, part
    assert "Still distilling" not in text
    # Started as it was, the run would repeat nothing.
    assert read_commands(text)["Command that reproduces the run"] == (
        "python launch.py --config=configs/quickstart.py --workdir=runs/again"
    )
    assert "may need" not in text, "no name lacks its folder"


def read_commands(text):
    """Commands and code of a page, by what they are."""
    found = re.findall(
        r'<pre tabindex="0" aria-label="([^"]+)"><code>(.*?)</code>', text, re.DOTALL
    )
    return {what: html.unescape(re.sub(r"<[^>]+>", "", inside)) for what, inside in found}


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
    # The axis goes from 50 to 100 %.
    assert (59.0, 63.0) in whiskers


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


def test_names_do_not_turn_the_text_around_them(tmp_path):
    hebrew = "\u05d7\u05ea\u05d5\u05dc"
    folder = write_run(tmp_path / "run", names=(hebrew, "b", "c", "d"))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert text.count(f"<bdi>{hebrew}</bdi>") >= 2
    assert f">{hebrew}<" not in text.replace(f"<bdi>{hebrew}</bdi>", "")


@pytest.mark.slow
def test_hundred_noisy_classes_take_less_than_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(100)]
    noise = rng.random((100, 256, 256, 3), np.float32)
    folder = write_run(tmp_path / "noise", names=names, images=noise, side=256, steps=(10, 20))
    assert write(folder) == 0
    assert 1e6 < (tmp_path / "noise" / "report.html").stat().st_size < 10e6
    assert not (folder / "report").exists()
    # Those of several other runs, too.
    assert write(folder, *[f"--beside={folder}"] * 3) == 0
    text = (folder / "report.html").read_text()
    assert text.count('data-title="distilled for near"') == 300
    assert 1e6 < len(text) < 10e6


def test_many_classes_have_pictures_beside_the_page(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    folder = write_run(tmp_path / "many", names=names, side=8)
    assert write(folder) == 0
    images = Tags((folder / "report.html").read_text()).of("img")
    assert len(images) == 1000 * 4 + 3 + 100
    frames = [image for image in images if "data-said" in image]
    assert len(frames) == 3
    # Frames have to be there once they are shown; they are hidden until then.
    assert {image.get("loading") for image in frames} == {None}
    assert {image["loading"] for image in images if image not in frames} == {"lazy"}
    # The page and the folder beside it are all that has to be sent.
    assert all((folder / image["src"]).is_file() for image in images)
    assert {image["src"].split("/")[0] for image in images} == {"report"}
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


def test_unfinished_page_counts_all_images_of_a_class(tmp_path):
    names = [f"class {i}" for i in range(100)]
    folder = write_run(tmp_path / "going", names=names, finished=False)
    images = np.zeros((300, 8, 8, 3), np.float32)
    images[::3] = 1
    labels = np.repeat(np.arange(100, dtype=np.int32), 3)
    page.write_unfinished_page(folder, 20, images, labels, names)
    text = (folder / "report.html").read_text()
    assert text.count('class="card"') == text.count(">3 images</span>") == 100
    # One is shown of each, the first.
    assert "The first 1 of 3 images of each class are shown" in text
    shown = {image["src"] for image in Tags(text).of("img") if "data-said" not in image}
    assert shown == {pictures.data_uri(pictures.encode(pictures.to_bytes(images[:1]), 256)[0])}


def test_finished_run_shows_nothing_of_later_steps(tmp_path):
    folder = write_run(tmp_path / "first")
    with (folder / runs.METRICS).open("a") as file:
        file.write(json.dumps({"step": 40, "loss": 0.9}) + "\n")
    record = json.loads((folder / runs.STAGES).read_text())
    record["distill"]["going_on"] = [{"from_step": 30, "commit": "c0ffee"}]
    (folder / runs.STAGES).write_text(json.dumps(record))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "<dd>0.0333</dd>" in text
    assert "0.9000" not in text
    assert "c0ffee" not in text
    # It goes on: what was finished is shown no more, and who goes on is named.
    going = view.read_run(folder, step=40)
    assert going.results is None
    assert going.losses[-1] == (40, 0.9)
    assert going.made_by[-1]["commit"] == "c0ffee"


def test_damaged_contact_sheets_are_left_out(tmp_path, capsys):
    folder = write_run(tmp_path / "first", steps=(10, 20, 30, 40))
    sheets = folder / runs.TIMELAPSE
    (sheets / "step_000020.webp").write_bytes(b"")
    whole = (sheets / "step_000040.webp").read_bytes()
    (sheets / "step_000040.webp").write_bytes(whole[: len(whole) // 2])
    assert write(folder) == 0
    said = capsys.readouterr().out
    assert re.findall(r"note: \S+(step_\d+)\.webp is damaged", said) == [
        "step_000020",
        "step_000040",
    ]
    images = Tags((folder / "report.html").read_text()).of("img")
    assert [i["data-said"] for i in images if "data-said" in i] == [
        "step 10, loss 0.1000",
        "step 30, loss 0.0333",
    ]


def test_commands_of_odd_folders_can_be_typed(tmp_path):
    name = "my run\"s 'n' $more"
    folder, where = write_run(tmp_path / name), f"runs/{name}"
    config = json.loads((folder / runs.CONFIG).read_text())
    config["command"] = f"python launch.py {shlex.quote(f'--workdir={where}')}"
    (folder / runs.CONFIG).write_text(json.dumps(config))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    (argument,) = re.findall(r"load_distilled\((.+)\)", html.unescape(text))
    assert eval(argument) == where
    again, beside = read_commands(text)["Commands that compare two runs"].splitlines()
    assert shlex.split(again)[2:] == ["--config.seed=1", "--workdir=runs/another"]
    assert shlex.split(beside)[3:5] == [where, "runs/another"]


def test_page_says_how_each_classifier_was_trained():
    adam = probe_entry(80.0) | {"solver": "adam", "epochs": 1000, "augment": "fresh"}
    full = adam | {"epochs": 100, "augment": "views"}
    assert accuracies.describe_training({"distilled": adam, "full": full}) == (
        "Classifiers: adam, 1,000 epochs, augmentation: fresh. "
        "The one on all real images: adam, 100 epochs, augmentation: views."
    )
    assert accuracies.describe_training({"distilled": adam, "random": adam, "full": adam}) == (
        "Classifiers: adam, 1,000 epochs, augmentation: fresh."
    )
    # Another number of iterations towards the same minimum is no other way to train.
    few, all_ = probe_entry(80.0), probe_entry(95.0) | {"epochs": 50}
    assert accuracies.describe_training({"distilled": few, "full": all_}) == (
        "Classifiers: lbfgs, augmentation: views."
    )
    assert accuracies.describe_training({"full": full}) == (
        "Classifiers: adam, 100 epochs, augmentation: views."
    )


def test_classifiers_with_epochs_have_learning_curves(tmp_path):
    folder = write_run(tmp_path / "first")
    results = json.loads((folder / runs.RESULTS).read_text())
    entries = results["probe"]["far"]
    entries["distilled"]["loss_curve"] = [[1, 1.4], [500, 0.25], [1000, 0.125]]
    entries["full"]["loss_curve"] = [[1, 1.3], [100, 0.5]]
    # Those of a solver without epochs, of a version that kept none, and of one that diverged.
    entries["random"]["loss_curve"], entries["centroids"]["loss_curve"] = None, []
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert 'aria-label="Training loss by epoch of 2 classifiers on far"' in text
    assert "classifiers on near" not in text
    said = " ".join(text.split())
    assert "distilled: 1.4000 at epoch 1, 0.1250 at epoch 1,000." in said
    assert "all real: 1.3000 at epoch 1, 0.5000 at epoch 100." in said


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
    (expected,) = pictures.shrink([view.first_pictures(view.read_run(run).gallery)[2]], 160)
    assert pictures.data_uri(expected) in text


def test_comparison_sets_classes_side_by_side(tmp_path, run):
    other = write_run(tmp_path / "other", names=NAMES[::-1], backbone="far", seed=1)
    out = tmp_path / "deep" / "compare.html"
    assert write(run, other, f"--out={out}") == 0
    text = out.read_text()
    rows = re.findall(r'<tr data-name="(\w+)" data-label="\d">.*?</tr>', text, re.DOTALL)
    assert rows == list(NAMES)
    alts = [image["alt"] for image in Tags(text).of("img")]
    assert alts[:2] == ["zero, distilled for near", "zero, distilled for far"]
    # The other run orders its classes the other way round.
    expected = view.first_pictures(view.read_run(other).gallery)[3]
    assert Tags(text).of("img")[1]["src"] == pictures.data_uri(expected)
    assert text.count('class="mine"') == 2
    assert len([p for p in Tags(text).of("path") if p["class"].startswith("line")]) == 2
    assert "different images or splits" not in text


def test_comparison_tells_backbones_of_one_name_apart(tmp_path):
    """With other settings in another run it is another backbone; equal ones share a column."""
    folders = [write_run(tmp_path / name, backbone=name) for name in ("one", "two")]
    for folder, near in zip(folders, ("a" * 64, "b" * 64), strict=True):
        stages = json.loads((folder / "stages.json").read_text())
        for name, fingerprint in (("near", near), ("far", "c" * 64)):
            record = {"inputs": {"backbone": fingerprint}, "result": {}}
            stages[f"probe/distilled/{name}"] = record
        (folder / "stages.json").write_text(json.dumps(stages))
    out = tmp_path / "compare.html"
    assert write(*folders, f"--out={out}") == 0
    columns = re.findall(r'<th scope="col">on ([^<]+)</th>', out.read_text())
    assert columns == ["near, as in one", "far", "near, as in two"]


def test_comparison_of_many_classes_has_pictures_beside_it(tmp_path):
    names = [f"class {i}" for i in range(250)]
    a, b = (write_run(tmp_path / name, names=names, side=8) for name in "ab")
    out = tmp_path / "compare.html"
    assert write(a, b, f"--out={out}") == 0
    images = Tags(out.read_text()).of("img")
    assert len(images) == 500
    assert all((tmp_path / image["src"]).is_file() for image in images)
    assert sorted(path.name for path in (tmp_path / "compare_pictures").iterdir()) == [
        "run0",
        "run1",
    ]


def many_to_few(monkeypatch):
    """Makes comparisons of a few pictures like those of many."""
    monkeypatch.setattr(compare, "_MOST_PICTURES", 3)


def test_comparison_leaves_runs_alone(tmp_path, run, capsys, monkeypatch):
    many_to_few(monkeypatch)
    a = Path(write_run(tmp_path / "a", seed=1))
    assert write(a) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # The run's own page, a page in a folder of it, a folder of pictures that is a run.
    assert "into the run" in refuse(capsys, run, a, f"--out={a / 'report.html'}")
    assert "into the run" in refuse(capsys, run, a, f"--out={a / 'deep' / 'x.html'}")
    a.rename(tmp_path / "x_pictures")
    line = refuse(capsys, run, tmp_path / "x_pictures", f"--out={tmp_path / 'x.html'}")
    assert "into the run" in line
    (tmp_path / "x_pictures").rename(a)
    for name in ("cmp", "cmp.htm", ""):
        assert "is no HTML file" in refuse(capsys, run, a, f"--out={tmp_path / name}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Beside a run of the page's name, its folder is not the one for pictures.
    assert write(run, a, f"--out={tmp_path / 'a.html'}") == 0
    after = {path: path.read_bytes() for path in a.rglob("*") if path.is_file()}
    assert after == before


def test_comparison_removes_its_own_pictures_and_links_odd_names(tmp_path, run, monkeypatch):
    many_to_few(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    others = [write_run(tmp_path / f"other{number}", seed=number) for number in (1, 2)]
    assert write(run, *others, "--out=~/a #1 50%.html") == 0
    folder = tmp_path / "a #1 50%_pictures"
    (folder / "notes.txt").write_text("mine")
    assert write("~/other1", run, "--out=~/a #1 50%.html") == 0
    sources = [image["src"] for image in Tags((tmp_path / "a #1 50%.html").read_text()).of("img")]
    assert len(sources) == 8
    assert not any(set("# ") & set(source) for source in sources)
    assert all((tmp_path / urllib.parse.unquote(source)).is_file() for source in sources)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "run0", "run1"]
    monkeypatch.undo()
    assert write(run, others[0], f"--out={tmp_path / 'a #1 50%.html'}") == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_runs_of_one_backbone_are_told_apart(tmp_path, run):
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    views = [view.read_run(write_run(folder)) for folder in folders]
    assert compare.name_runs(views) == ["near (a/x)", "near (b/x)", "near (b/y)"]
    assert compare.name_runs(views[1:]) == ["near (x)", "near (y)"]
    far = view.read_run(write_run(tmp_path / "far", backbone="far"))
    assert compare.name_runs([views[0], far]) == ["near", "far"]
    names = compare.name_runs([views[0], views[0]])
    assert len(set(names)) == 2


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
    (damaged / runs.STAGES).write_text('{"distill": null}')
    assert "stages.json is damaged: a stage's record" in refuse(capsys, damaged)
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
    assert made.fits_one_file
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
    assert pictures.spread_with_ends(3, 3) == [0, 1, 2]
    assert pictures.spread_with_ends(9, 4) == [0, 2, 5, 8]


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
    assert timelapse.choose([5, 5, 5, 5], 10) == [0, 3]
    assert timelapse.choose([5] * 9, 20) == [0, 2, 5, 8]
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
    # A run of baselines alone names a backbone, an objective and steps, none of which came to be.
    files.write_json(folder / runs.RESULTS, results | {"steps": None})
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "<title>shapes</title>" in text
    assert "Measure that again, in a folder of its own" in text
    for untrue in (
        "distilled for",
        "Linear Gradient Matching</dd>",
        "<dt>Steps</dt>",
        "Make these",
    ):
        assert untrue not in text, untrue


def test_differences_within_two_standard_errors_may_be_chance():
    entries = {
        "distilled": probe_entry(90.0, 0.0),
        "centroids": probe_entry(87.0, 0.0),
        "random": probe_entry(70.0, 0.0),
        "full": probe_entry(90.0, 0.0),
    }
    # Of 400 images: 1.5 and 1.7 points, together 2.3.
    assert words.doubtful(entries, 400) == ["centroids", "full"]
    assert words.doubtful(entries, 4000) == ["full"]
    # What repetitions differ in counts, too.
    entries["random"] = probe_entry(70.0, 15.0)
    assert words.doubtful(entries, 4000) == ["random", "full"]
    assert words.compare(entries) == [
        "20.0 points more than with as many random real ones",
        "3.0 more than with the most typical real ones",
        "as many as with all real ones",
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
    assert words.gap({"distilled": probe_entry(80), "random": probe_entry(80)}) is None
    assert words.gap(clear | {"random": probe_entry(70), "full": probe_entry(95)}) == 0.8
    assert words.gap(clear | {"random": probe_entry(88), "full": probe_entry(90)}) is None


def test_durations_and_devices_are_said_in_words():
    assert [words.duration(s) for s in (0.4, 73.0, 600.0, 7500.0)] == [
        "0 s",
        "73 s",
        "10 min",
        "2 h 5 min",
    ]
    assert words.devices(["cpu"]) == "1 CPU"
    assert words.devices(["H100"] * 8 + ["cpu"]) == "8 x H100, 1 CPU"
    assert words.join(["a", "b", "c"]) == "a, b and c"


def test_commands_are_changed_and_their_bare_names_found():
    command = (
        "python launch.py --config=c.py --config.seed=3 '--config.data.folder=p q' --workdir=w/x"
    )
    assert commands.folder(command, "x") == "w/x"
    # It was renamed, or nothing is known of it.
    assert commands.folder(command, "y") == commands.folder(None, "y") == "y"
    assert commands.anew(command, "w/z").endswith("'--config.data.folder=p q' --workdir=w/z")
    assert commands.bare_names(command) == ["c.py", "p q"]
    # Backbones may be folders.
    of_backbones = (
        "launch.py --config.backbone.name=dinov2_vitb14,mine --config.eval_backbones=mine"
    )
    assert commands.bare_names(of_backbones) == ["mine"]
    assert commands.changed(command, config__seed=4, workdir="runs/again") == (
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
    text = commands.load("runs/x", 10, side, ["a", "b", "c"], backbone, soft=False)
    compile(text, "code", "exec")
    assert "['a', 'b', ...]" in text
    assert ("backbones.load" in text) == (expected is not None)
    assert expected is None or expected in text
    assert "probabilities" in commands.load("x", 2, 8, ["a"], None, soft=True)


def test_axis_of_accuracies_encloses_them_and_guessing_where_it_is_near():
    assert charts.percent_range([70.2], [96.3], 10.0) == (60, 100)
    assert charts.percent_range([70.2], [96.3], 50.0) == (40, 100)
    assert charts.percent_range([99.5], [100.0], 0.1) == (90, 100)
    assert charts.percent_range([0.1], [5.0], 0.1) == (0, 10)


def test_thumbnails_that_hide_each_other_are_moved_apart():
    places = np.asarray([[0.5, 0.5], [0.5, 0.5], [0.52, 0.5], [0.9, 0.2], [1.0, 1.0]])
    moved = charts.move_apart(places, (0.1, 0.1), 0.5)
    # Sides of the boxes, in parts of width and height.
    apart = np.abs(moved[:, None] - moved[None]) / np.asarray([0.1, 0.2])
    assert (apart.max(axis=-1) + 2 * np.eye(5) > 0.98).all()
    np.testing.assert_array_equal(moved[3], places[3])
    np.testing.assert_allclose(moved[4], [0.95, 0.9])


def test_real_picture_of_two_kinds_is_shown_once(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.float32)
    reals = {kind: np.zeros((2, 8, 8, 3), np.uint8) for kind in gallery.REALS}
    reals["random"][:] = 9
    reals["neighbors"][1] = 5
    made = gallery.make_gallery(images, np.arange(2, dtype=np.int32), ["a", "b"], reals)
    assert made.side == 8
    assert [said["name"] for _, said in cards.describe_reals(made, 0)] == [
        "typical and look-alike",
        "random",
    ]
    assert len(cards.describe_reals(made, 1)) == 3


def test_growth_is_marked_where_a_finer_level_joins():
    settings = {"images.kind": "pyramid", "images.grow_every": 100, "images.start_resolution": 4}
    expected = [(100, "8 px"), (200, "16 px"), (300, "32 px")]
    assert losses.describe_growth(settings, 32) == expected
    later = losses.describe_growth(settings | {"images.grow_delay": 1}, 32)
    assert [step for step, _ in later] == [101, 201, 301]
    assert losses.describe_growth(settings | {"images.kind": "pixels"}, 32) == []
    assert losses.describe_growth(settings, None) == []
    found = losses.describe_losses([("a", [(0, 1.0), (1000, 0.5)])], 0, expected)
    assert [mark["wide"] for mark in found["marks"]] == [True] * 3
    assert [mark["narrow"] for mark in found["marks"]] == [True, False, True]


def test_run_of_an_earlier_version_has_a_page(tmp_path):
    """Without what later versions record: sizes, dates, the test split, changed settings."""
    folder = write_run(tmp_path / "old")
    config = json.loads((folder / runs.CONFIG).read_text())
    del config["changed"], config["data"]["counts"]["test"], config["command"]
    for name in ("images.init", "images.kind"):
        del config["config"][name]
    (folder / runs.CONFIG).write_text(json.dumps(config))
    found = gallery.load_gallery(folder / runs.GALLERY)
    gallery.save_gallery(folder / runs.GALLERY, dataclasses.replace(found, side=None))
    assert gallery.load_gallery(folder / runs.GALLERY).side is None
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "80.5 %</strong> of unseen test images correctly: 20.5 points" in text
    assert "Another seed gives other images" in text
    assert "may be chance" not in text
    assert "ANOTHER_RUN" in text


def test_page_of_several_backbones_and_soft_labels_says_so(tmp_path):
    folder = write_run(tmp_path / "two", evaluated=("other", "near", "far"), ipc=2)
    results = json.loads((folder / runs.RESULTS).read_text())
    results |= {
        "backbones": ["near", "far"],
        "objective": "clp",
        "labels": {"kind": "soft", "bytes": 128},
    }
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    for part in (
        "<strong>near and far</strong>, the frozen models that look at them, take for typical",
        "made for the models, not for people",
        # What they were made for comes first, whatever was evaluated first.
        "on near <span>One of the models they were made for.",
        "Also on 2 other models",
        "On far <span>A model they were made for, too.",
        "On other <span>Not the model",
        "soft, learned along",
        "There are 2 of each per class",
        # The loss is the objective's own.
        "How badly a classifier fitted to the distilled images names real ones",
    ):
        assert part in text, part


def test_page_says_of_an_objective_what_it_says_of_itself(tmp_path):
    folder = write_run(tmp_path / "own")
    results = json.loads((folder / runs.RESULTS).read_text())
    # Of ours without a word in the results, as earlier versions left them, the class says it.
    assert write(folder) == 0
    assert "Each step draws a random classifier" in (folder / "report.html").read_text()
    about = {"title": "nearest <means>", "each_step": "Each step pulls.", "loss_is": "How far."}
    results |= {"objective": "mine:Means", "about_objective": about}
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    for part in ("nearest &lt;means&gt;", "Each step pulls.", "How far."):
        assert part in text, part
    assert "random classifier" not in text


def test_run_of_an_experiment_is_found_in_its_folder(tmp_path):
    folder = write_run(tmp_path / "digits_near_seed0")
    config = json.loads((folder / runs.CONFIG).read_text())
    config["command"] = (
        "python launch.py --config=configs/experiments/table2.py:embedded --workdir=runs/table2"
    )
    files.write_json(folder / runs.CONFIG, config)
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    found = read_commands(text)
    where = "runs/table2/runs/digits_near_seed0"
    assert f"load_distilled('{where}')" in found["Python to load the images"]
    # Its command makes every run of the experiment, and no other seed of this one.
    assert "one of an experiment" in text
    assert "Command that reproduces the run" not in found
    assert found["Command that reproduces the experiment"] == (
        "python launch.py --config=configs/experiments/table2.py:embedded --workdir=runs/again"
    )
    assert found["Commands that compare two runs"] == (
        f"python -m lgm_jax.report {where} ANOTHER_RUN --out=compare.html"
    )
    # Runs that experiments share lie with the first of them.
    shared = config["command"] + " --config.experiment.share=runs/table1"
    assert commands.folder(shared, "a") == "runs/table1/runs/a"
    assert commands.anew(shared, "w") == commands.changed(config["command"], workdir="w")
    assert commands.makes_several("launch.py --config=mine.py --config.experiment.seeds=2")
    assert commands.makes_several("launch.py --config=table2:embedded")
    assert commands.makes_several("launch.py --config=table2.py --workdir=w")
    assert not commands.makes_several("launch.py --config=configs/quickstart.py")
    assert not commands.makes_several("launch.py --config=quickstart:quick")


def test_run_on_the_way_without_images_says_what_it_distils_for(tmp_path):
    folder = write_run(tmp_path / "going", finished=False, backbone="near,far")
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "shapes, being distilled" in text
    assert "Real images of" not in text
    assert "distilled for near and far" in text


def test_images_from_elsewhere_are_not_said_to_lie_in_the_run(tmp_path):
    folder = write_run(tmp_path / "theirs")
    results = json.loads((folder / runs.RESULTS).read_text())
    elsewhere = {"backbones": [], "steps": None, "objective": None}
    files.write_json(folder / runs.RESULTS, results | elsewhere)
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "made elsewhere and are measured here" in text
    assert "load_distilled" not in text
    assert write(folder, write_run(tmp_path / "ours"), f"--out={tmp_path / 'both.html'}") == 0
    both = (tmp_path / "both.html").read_text()
    assert "Some of the images were made elsewhere" in both
    assert "<small>lgm, 30 steps, ours</small>" in both
    assert "<small></small>" in both


def test_page_names_the_model_that_was_not_aimed_at(tmp_path):
    folder = write_run(tmp_path / "far", evaluated=("far",))
    assert write(folder) == 0
    assert "on far <span>Not the model they were made for." in (folder / "report.html").read_text()


def test_losses_that_are_not_finite_are_left_out():
    found = losses.describe_losses(
        [("a", [(1, 2.0), (2, float("nan"))]), ("b", [(1, float("inf"))])]
    )
    assert [(curve["name"], curve["last"]) for curve in found["curves"]] == [("a", (1, 2.0))]
