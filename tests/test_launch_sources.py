"""Runs on photos, on groups, on the images of others, and on images that the host streams."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from lgm_jax.opening import open_session
from tests.launching import (
    DIGITS,
    FOLDER,
    QUICK,
    distilled_from,
    refuse,
    snapshot,
    start,
    write_classes,
)


@pytest.mark.slow
def test_folder_of_photos_runs_to_the_end(photos, tmp_path):
    arguments = (
        "--config=configs/dinov2_folder.py:quick",
        f"--config.data.folder={photos}",
        "--config.copies=2",
    )
    assert start(*arguments, workdir=tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    entry = results["probe"]["digits_contrastive"]["distilled"]
    assert results["num_classes"] == 2
    assert entry["top5_mean"] is None
    assert str(photos) not in (tmp_path / "run" / "results.json").read_text()
    assert (tmp_path / "run" / "grid.png").is_file()


def test_bad_folders_are_refused(photos, tmp_path, capsys):
    def attempt(folder):
        config = "--config=configs/dinov2_folder.py:quick"
        return refuse(capsys, config, f"--config.data.folder={folder}", workdir=tmp_path / "run")

    broken = Path(shutil.copytree(photos, tmp_path / "broken"))
    image = next((broken / "dog").iterdir())
    for image in (broken / "dog").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    assert "cannot read image" in attempt(broken)
    assert image.parent.name in attempt(broken)
    hollow = Path(shutil.copytree(photos, tmp_path / "hollow"))
    (hollow / "ant").mkdir()
    (hollow / "ant" / "film.mp4").write_text("no photo")
    assert "class 'ant' has no images in" in attempt(hollow)
    (tmp_path / "empty").mkdir()
    assert "empty" in attempt(tmp_path / "empty")


@pytest.mark.slow
def test_overwrite_throws_away_nothing_before_the_new_images_were_read(photos, tmp_path, capsys):
    workdir = tmp_path / "run"
    distilled_from(photos, workdir)
    before = snapshot(workdir)
    for split in ("train", "test"):
        folder = tmp_path / split
        for name in ("train", "test"):
            shutil.copytree(photos, folder / name)
        for image in (folder / split / "dog").iterdir():
            image.write_bytes(image.read_bytes()[:200])
        arguments = (*FOLDER, f"--config.data.folder={folder}", "--overwrite")
        assert f"{split}/dog" in refuse(capsys, *arguments, workdir=workdir)
        assert snapshot(workdir) == before
    train = f"--config.data.folder={tmp_path / 'train'}"
    refuse(capsys, *FOLDER, train, workdir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_foreign_images_are_probed(finished, tmp_path, capsys):
    """The PNGs alone, without our arrays, score like the run they come from, but for rounding."""
    pngs = tmp_path / "pngs"
    shutil.copytree(finished / "distilled", pngs, ignore=shutil.ignore_patterns("distilled.npz"))
    arguments = (QUICK, f"--config.images.source={pngs}", "--config.probe.epochs=20")
    assert "stages" in refuse(capsys, *arguments, workdir=tmp_path / "run")
    stages = "--config.stages=probe,baselines,report"
    assert start(*arguments, stages, workdir=tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["backbones"] == []
    assert results["steps"] is None
    own = shutil.copytree(finished, tmp_path / "own")
    # A few steps leave little contrast, and what 8 bits do to that is not what is asked here.
    arrays = dict(np.load(own / "distilled" / "distilled.npz"))
    arrays["images"] = np.round(arrays["images"] * 255).astype(np.uint8).astype(np.float32) / 255
    np.savez(own / "distilled" / "distilled.npz", **arrays)
    assert start(QUICK, "--config.probe.epochs=20", workdir=own) == 0
    expected = json.loads((own / "results.json").read_text())
    for method in ("random", "centroids", "distilled"):
        ours, theirs = (
            r["probe"]["digits_contrastive"][method]["top1_mean"] for r in (expected, results)
        )
        assert ours == pytest.approx(theirs, abs=1e-4)
    other = Path(shutil.copytree(pngs, tmp_path / "nine"))
    shutil.rmtree(other / "9_nine")
    refused = refuse(
        capsys, QUICK, stages, f"--config.images.source={other}", workdir=tmp_path / "run2"
    )
    assert "9 classes" in refused


def open_source(folder, workdir, ipc=1):
    """The foreign images that a session of the quick recipe would evaluate."""
    config, *_ = launch.parse(["launch.py", QUICK, f"--workdir={workdir}"])
    config.images.source, config.stages, config.ipc = str(folder), "probe", ipc
    return open_session(config, str(workdir), overwrite=False).source


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (DIGITS, "class name"),
        # A prefix that is wrong for this data set: the names know better.
        ([f"{(i + 3) % 10}_{name}" for i, name in enumerate(DIGITS)], "class name"),
        ([f"{i}_{name}" for i, name in enumerate("abcdefghij")], "<label>_<name> folders"),
    ],
)
def test_foreign_labels_follow_the_rule_that_is_printed(names, rule, tmp_path, capsys):
    source = open_source(write_classes(tmp_path / "set", names), tmp_path / "run")
    brightness = source.images.mean(axis=(1, 2, 3)) * 25.5
    np.testing.assert_allclose(brightness, source.labels, atol=1e-4)
    assert f"10 images, labels by {rule}" in capsys.readouterr().out


def test_metadata_labels_decide_where_no_name_is_known(tmp_path, capsys):
    folder = write_classes(tmp_path / "set", "jihgfedcba")
    lines = [{"file_name": f"{name}/0.png", "label": i} for i, name in enumerate("jihgfedcba")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(folder, tmp_path / "run")
    brightness = source.images.mean(axis=(1, 2, 3)) * 25.5
    np.testing.assert_allclose(brightness, source.labels, atol=1e-4)
    assert "labels by metadata.jsonl, since no class name matches: j is zero, i is one" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([*DIGITS[:9], "neun"], ["neun there", "nine here"]),
        ([f"{i}_{name}" for i, name in enumerate(["null", *DIGITS[1:]])], ["null", "zero"]),
        (list("abcdefghij"), ["a, b, c, d, e and 5 more", "<label>_<name>"]),
    ],
)
def test_foreign_classes_that_do_not_fit_are_named(names, words, tmp_path, capsys):
    folder = write_classes(tmp_path / "set", names)
    arguments = (QUICK, "--config.stages=probe", f"--config.images.source={folder}")
    line = refuse(capsys, *arguments, workdir=tmp_path / "run")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_foreign_images_need_as_many_per_class_as_the_config_says(tmp_path, capsys):
    folder = write_classes(tmp_path / "set", DIGITS, count=2)
    assert len(open_source(folder, tmp_path / "run", ipc=2).labels) == 20
    arguments = (QUICK, "--config.stages=probe", f"--config.images.source={folder}")
    assert "--config.ipc=2" in refuse(capsys, *arguments, workdir=tmp_path / "run2")
    (folder / "nine" / "0.png").unlink()
    assert "1 to 2 images" in refuse(capsys, *arguments, workdir=tmp_path / "run2")


def write_waterbirds(folder, rows):
    """A set in WILDS' layout; the label shows in the red channel, the place in the blue one."""
    lines = ["img_id,img_filename,y,split,place"]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, (y, split, place) in enumerate(rows):
        pixels = rng.integers(0, 60, (36, 40, 3)) + np.asarray([150 * y, 0, 150 * place])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i},{i}.png,{y},{split},{place}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_groups_and_worst_group_are_reported(tmp_path):
    # No waterbird on land among the test images.
    test = [(0, 2, 0)] * 3 + [(0, 2, 1)] * 2 + [(1, 2, 1)] * 5
    rows = [(y, split, place) for split in (0, 1) for y in (0, 1) for place in (0, 1)] * 2 + test
    folder = write_waterbirds(tmp_path / "birds", rows)
    data = ("--config.data.name=waterbirds", f"--config.data.folder={folder}")
    workdir = tmp_path / "run"
    assert start(QUICK, *data, "--config.stages=baselines,report", workdir=workdir) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["skipped_images"] == {}
    for entry in results["probe"]["digits_contrastive"].values():
        assert set(entry["groups"]) == {
            "landbird on land",
            "landbird on water",
            "waterbird on water",
        }
        sizes = {"landbird on land": 3, "landbird on water": 2, "waterbird on water": 5}
        whole = sum(entry["groups"][name] * size for name, size in sizes.items()) / 10
        assert np.isclose(whole, entry["top1_mean"], rtol=1e-5)
        assert entry["worst_group"] <= min(entry["groups"].values()) + 1e-6
    counts = json.loads((workdir / "config.json").read_text())["data"]["counts"]
    assert counts["test"]["classes"] == {"landbird": 5, "waterbird": 5}


def test_bad_images_are_listed_when_skipped_and_stop_a_run_otherwise(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "cat" / "6.jpg").write_bytes((folder / "cat" / "5.jpg").read_bytes()[:300])
    options = (QUICK, "--config.data.name=folder", f"--config.data.folder={folder}")
    options += ("--config.stages=baselines,report", "--config.baselines=random")
    assert f"cannot read image {folder}/cat/6.jpg" in refuse(
        capsys, *options, workdir=tmp_path / "stopped"
    )
    skip = "--config.data.on_bad_image=skip"
    assert start(*options, skip, workdir=tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert re.search(r"note: photos: 1 \w+ images cannot be read and are left out: cat/6", printed)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["skipped_images"].values()) == [["cat/6.jpg"]]


def test_tuning_on_images_that_a_benchmark_does_not_have_is_refused(tmp_path, capsys):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32)).save(tmp_path / split / wnid / f"{i}.JPEG")
    options = (QUICK, "--config.data.name=imagenet", f"--config.data.folder={tmp_path}")
    line = refuse(capsys, *options, "--config.probe.split=val", workdir=tmp_path / "run")
    assert "imagenet has no val images" in line
    assert "set --config.data.val_fraction=" in line
