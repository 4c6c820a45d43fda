"""The page of a run, from run folders made by hand."""

import html
import json
import re
import shlex

import numpy as np
import pytest

from lgm_jax import runs
from lgm_jax.report import accuracies
from tests.report_pages import Tags, read_commands, write
from tests.run_folders import probe_entry, write_run


@pytest.fixture(scope="module")
def text(reported):
    """That run's page."""
    return (reported / "report.html").read_text()


def test_page_says_what_how_good_and_what_next(text):
    for part in (
        '<h1 id="headline">4 images teach 80.5\u00a0%, all 200 teach 95.0\u00a0%</h1>',
        "Nobody drew or photographed these images",
        "they began as random noise, and for 30 steps",
        "Each is 32 \u00d7 32 pixels",
        "10.5 points more than with typical real images, 15.5 more than with look-alike real "
        "images, 20.5 more than with random real images and 14.5 fewer than with all real images.",
        "Measured on 80 images for one distillation (seed 0). The difference to typical real "
        "images may be chance.",
        "On near <span>The model they were made for.",
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
    assert (
        "names 80.5 % of 80 unseen test images correctly: 10.5 points more than with typical real "
        "images. Guessing gives 25 %." in re.sub("<[^>]+>", "", text)
    )
    assert "Still distilling" not in text
    # Started as it was, the run would repeat nothing.
    assert read_commands(text)["Command that reproduces the run"] == (
        "python launch.py --config=configs/quickstart.py --workdir=runs/again"
    )
    assert "by name alone" not in text, "no name lacks its folder"


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


@pytest.mark.slow
def test_many_classes_have_pictures_beside_the_page(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    folder = write_run(tmp_path / "many", names=names, side=8)
    assert write(folder) == 0
    images = Tags((folder / "report.html").read_text()).of("img")
    # A picture of the confusion, and one of the map's thumbnails at a time.
    assert len(images) == 1000 * 4 + 3 + 1 + 1
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


def test_several_images_per_class_share_a_card(tmp_path):
    folder = write_run(tmp_path / "seven", ipc=7)
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert text.count('class="card"') == 4
    assert text.count('class="row"') == 4 * 5
    assert "The first 5 of 7 images of each class are shown" in text
    assert "28 images teach 80.5\u00a0%" in text
