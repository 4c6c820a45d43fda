"""Real images that the host reads as they are needed."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lgm_jax import opening
from lgm_jax import session as session_module
from lgm_jax.data.records import ImageSplit
from lgm_jax.stages import probing
from tests.launching import FOLDER, distilled_from, opened, refuse, start
from tests.marks import slow


@pytest.mark.parametrize("sampling", [slow("shuffle"), slow("balanced")])
def test_placement_on_host_and_device_distil_the_same_images(photos, tmp_path, sampling, capsys):
    how = ("--config.data.crop=center", f"--config.data.sampling={sampling}", "--config.copies=3")
    held = distilled_from(photos, tmp_path / "device", *how)
    assert "read by" not in capsys.readouterr().out
    host = (*how, "--config.data.placement=host", "--config.data.workers=0")
    np.testing.assert_array_equal(distilled_from(photos, tmp_path / "host", *host), held)
    assert "real images: 6 of 8 a step, read by threads" in capsys.readouterr().out


@pytest.mark.slow
def test_streaming_from_the_host_resumes_by_the_step_alone(photos, tmp_path):
    # Growth follows the steps, unless it is set.
    host = ("--config.data.placement=host", "--config.images.grow_every=1")
    here = (*host, "--config.data.workers=0")
    whole = distilled_from(photos, tmp_path / "whole", *here)
    distilled_from(photos, tmp_path / "parts", *here, "--config.steps=3")
    # By other workers, and with random crops.
    parts = distilled_from(photos, tmp_path / "parts", *host, "--config.data.workers=1")
    np.testing.assert_array_equal(parts, whole)
    center = distilled_from(photos, tmp_path / "center", *here, "--config.data.crop=center")
    assert not np.array_equal(center, whole)


@pytest.mark.slow
def test_placement_follows_the_size_of_the_data(photos, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        where = f"--config.data.folder={photos}"
        code = start(*FOLDER, where, "--config.data.workers=0", *arguments, workdir=tmp_path / "w")
        return code, capsys.readouterr()

    # Eight training images of 32 px take 24,576 bytes.
    monkeypatch.setattr(opening, "ON_DEVICE_LIMIT", 24_575)
    for module in (opening, session_module):
        monkeypatch.setattr(module, "MEMORY_LIMIT", 24_575)
    code, captured = run("--config.data.placement=device")
    assert code == 2
    assert re.fullmatch(r"error: [^\n]*--config\.data\.placement=host\n", captured.err)
    assert not (tmp_path / "w").exists()
    code, captured = run()
    assert code == 0
    assert "read by threads" in captured.out
    # The crops are other ones on the device.
    monkeypatch.undo()
    code, captured = run()
    assert code == 2
    assert "data.crop" in captured.err


def test_random_crops_need_the_host(photos, tmp_path, capsys):
    where = f"--config.data.folder={photos}"
    line = refuse(capsys, *FOLDER, where, "--config.data.crop=random", workdir=tmp_path / "w")
    assert "--config.data.placement=host" in line
    host = (*FOLDER, where, "--config.data.placement=host", "--config.augment.real=False")
    line = refuse(capsys, *host, "--config.data.crop=random", workdir=tmp_path / "w")
    assert "config.augment.real=False" in line
    # Images that are not augmented are not cropped anywhere either.
    assert opened(tmp_path / "kept", *host).crop == "center"
    assert opened(tmp_path / "random", *host[:-1]).crop == "random"


@pytest.mark.parametrize("crop", ["center", "random"])
def test_probe_of_all_images_reads_what_memory_does_not_hold(crop, photos, tmp_path, monkeypatch):
    read, load = [], ImageSplit.load

    def keep(split, indices, places=None):
        images = load(split, indices, places)
        if split is session.dataset.splits["train"] and len(indices) == len(split.labels):
            read.append(images)
        return images

    host = (f"--config.data.folder={photos}", "--config.data.placement=host")
    adam = ("--config.probe.solver=adam", "--config.probe.augment=fresh", "--config.baselines=full")
    epochs = ("--config.probe.full_epochs=2", f"--config.data.crop={crop}")
    session = opened(tmp_path / "w", *FOLDER, *host, *adam, *epochs)
    monkeypatch.setattr(ImageSplit, "load", keep)
    monkeypatch.setattr(probing, "MEMORY_LIMIT", 24_575)
    probing.baselines_stage(session)
    first, second = read
    assert np.array_equal(first, second) == (crop == "center")
    assert len(probing.collect_results(session)["digits_contrastive"]["full"]["top1_runs"]) > 1


@pytest.mark.slow
def test_balanced_batches_are_another_distillation(photos, tmp_path, capsys):
    distilled_from(photos, tmp_path / "w")
    where = f"--config.data.folder={photos}"
    balanced = "--config.data.sampling=balanced"
    assert "data.sampling" in refuse(capsys, *FOLDER, where, balanced, workdir=tmp_path / "w")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_streaming_ends_the_run_with_its_name(
    workers, photos, tmp_path, capfd, monkeypatch
):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    check = session_module.Session.check_start

    def check_and_break(session):
        check(session)
        for image in (folder / "dog").iterdir():
            image.write_bytes(b"no image")

    monkeypatch.setattr(session_module.Session, "check_start", check_and_break)
    host = ("--config.data.placement=host", f"--config.data.workers={workers}")
    where = f"--config.data.folder={folder}"
    line = refuse(capfd, *FOLDER, where, *host, workdir=tmp_path / "w")
    assert re.fullmatch(r"error: cannot read image [^\n]*/dog/\d\.jpg: [^\n]*\n", line)
