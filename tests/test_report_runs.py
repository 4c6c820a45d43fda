"""The pages of runs that are unfinished, of an earlier version, or without what others have."""

import dataclasses
import json
import re

import numpy as np

from lgm_jax import files, runs
from lgm_jax.distilled import save_distilled
from lgm_jax.report import commands, gallery, page, pictures, view
from tests.report_pages import Tags, read_commands, write
from tests.run_folders import NAMES, blobs, write_run


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
    assert going.results == {}
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


def test_run_without_pictures_is_read_from_its_distilled_images(tmp_path, reported):
    folder = write_run(tmp_path / "old")
    (folder / runs.GALLERY).unlink()
    images = blobs(np.random.default_rng(1), 4, 32)
    save_distilled(folder / runs.DISTILLED, images, np.arange(4, dtype=np.int32), NAMES)
    assert write(folder) == 0
    assert len(Tags((folder / "report.html").read_text()).of("img")) == 4 + 3


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
    plain = re.sub("<[^>]+>", "", text)
    assert "80.5 % of unseen test images correctly: 10.5 points" in plain
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
        "On near <span>A model they were made for.",
        "On far <span>A model they were made for.",
        "On other <span>Not the model",
        "soft, learned along",
        "on the images of a row, 2 of each class, or on all real ones",
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
    files.write_json(folder / runs.CONFIG, config | {"command": shared})
    assert write(folder) == 0
    again = read_commands((folder / "report.html").read_text())
    assert (
        again["Command that reproduces the experiment"]
        == (found["Command that reproduces the experiment"])
    )
    assert commands.makes_several("launch.py --config=mine.py --config.experiment.seeds=2")
    assert commands.makes_several("launch.py --config=table2:embedded")
    assert commands.makes_several("launch.py --config=table2.py --workdir=w")
    assert not commands.makes_several("launch.py --config=configs/quickstart.py")
    assert not commands.makes_several("launch.py --config=quickstart:quick")


def test_accuracies_that_are_no_numbers_are_named_and_not_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    results = json.loads((folder / runs.RESULTS).read_text())
    results["probe"]["near"]["full"]["top1_mean"] = float("nan")
    results["probe"]["far"] = {"full": results["probe"]["near"]["full"]}
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    assert (folder / runs.CARD).exists()
    text = (folder / "report.html").read_text()
    assert "Not a number." in text
    assert "nan" not in re.findall(r"[\w.]+", text)


def test_command_without_the_folders_of_this_machine_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    config = json.loads((folder / runs.CONFIG).read_text())
    config["command"] += " --config.data.folder=/secret/photos"
    files.write_json(folder / runs.CONFIG, config)
    assert write(folder) == 0
    text = (folder / "report.html").read_text()
    assert "elsewhere on the machine by name alone" in text
    assert "--config.data.folder=photos" in read_commands(text)["Command that reproduces the run"]
    assert "secret" not in text


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
    assert "On far <span>Not the model they were made for." in (folder / "report.html").read_text()
