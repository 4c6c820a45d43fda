"""The check of one GPU: what it compares, downloads, and packs to be sent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from lgm_jax import backbones, experiments
from lgm_jax.data import download, imagenet
from lgm_jax.errors import UserError
from lgm_jax.experiments import result, runner, verification
from lgm_jax.experiments.verification import ERRORS, EXPECTED, FEATURES, GRADIENT, MEASURED
from tests.experimenting import entry, load

WNIDS = [imagenet.wnids()[i] for i in imagenet.SUBSETS["imagenette"]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> download.Archive:
    """A small archive that is laid out as Imagenette's."""
    place = tmp_path_factory.mktemp("server")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for label, wnid in enumerate(WNIDS):
            folder = place / "imagenette2-320" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (36, 40, 3)) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.JPEG")
    # Labels with noise, of which nothing is read.
    table = place / "imagenette2-320" / "noise_imagenette.csv"
    table.write_text(f"path,noisy_labels_0\ntrain/{WNIDS[0]}/0.JPEG,{WNIDS[1]}\n")
    packed = place / "imagenette2-320.tgz"
    with tarfile.open(packed, "w:gz") as members:
        members.add(place / "imagenette2-320", "imagenette2-320")
    content = packed.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return download.Archive(packed.as_uri(), digest, len(content), "imagenette2-320")


def test_an_archive_is_downloaded_once(archive, tmp_path, capsys):
    folder = download.fetch(archive, tmp_path / "cache")
    assert sorted(path.name for path in (folder / "val").iterdir()) == sorted(WNIDS)
    assert "downloading file:" in capsys.readouterr().out
    # The address no longer leads anywhere, and is not asked.
    assert download.fetch(archive._replace(url="file:///nowhere"), tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["imagenette2-320"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "00"}, "is another file than expected"),
        ({"url": "file:///nowhere/imagenette2-320.tgz"}, "--config.data.folder=imagenette2-320"),
    ],
)
def test_a_failed_download_leaves_nothing(archive, tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as info:
        download.fetch(archive._replace(**changes), tmp_path)
    assert "\n" not in str(info.value)
    assert not list(tmp_path.iterdir())


def test_the_archive_is_the_one_that_tfds_knows():
    import tensorflow_datasets as tfds

    table = Path(tfds.__file__).parent / "datasets" / "imagenette" / "checksums.tsv"
    url, size, sha256, _ = next(
        line.split("\t")
        for line in table.read_text().splitlines()
        if line.startswith(download.IMAGENETTE.url + "\t")
    )
    known = download.Archive(url, sha256, int(size), Path(url).stem)
    assert known == download.IMAGENETTE


@pytest.fixture(scope="module")
def backbone() -> backbones.Backbone:
    return backbones.load("digits_contrastive", dtype="bfloat16")


def compared(backbone):
    import jax

    side = backbone.resolution
    images = np.random.default_rng(0).uniform(size=(3, side, side, 3)).astype(np.float32)
    return verification.compare(backbone, images, jax.random.key(0))


@pytest.mark.slow
def test_rounding_is_measured_as_expected(backbone):
    found = compared(backbone)
    assert list(found) == list(ERRORS)
    for errors in found.values():
        # The process's device is the CPU that it is compared with; bfloat16 has 8 bits.
        assert errors[MEASURED] == errors[EXPECTED]
        assert 0.1 < errors[EXPECTED] < 5


def test_a_device_that_computes_something_else_is_seen(backbone):
    def scaled(params, images):
        return 1.1 * backbone.apply(params, images)

    found = compared(dataclasses.replace(backbone, apply=scaled))
    assert found[FEATURES][MEASURED] == pytest.approx(10, abs=1)
    assert found[GRADIENT][MEASURED] == pytest.approx(10, abs=1)


def test_expected_times_are_of_gpus_with_published_peaks():
    config = next(
        each
        for name, each in experiments.planned_configs(load("verify_gpu")).items()
        if "dinov2" in name
    )
    # 3.8 TFLOP, by `--plan`, at 45 % of 312 and 989 TFLOP/s.
    for kind, ms in (("NVIDIA A100-SXM4-80GB", 27.1), ("NVIDIA H100 80GB HBM3", 8.54)):
        found = verification.planned_ms(config, kind, 10, 9469)
        assert found == pytest.approx(ms, rel=0.01)
    for kind in ("NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090", "cpu"):
        assert verification.planned_ms(config, kind, 10, 9469) is None


def fabricated(errors):
    """The result of runs whose errors are given: measured, expected."""
    config = load("verify_gpu")
    measured = {name: dict(zip((MEASURED, EXPECTED), errors, strict=True)) for name in ERRORS}
    measured[verification.STEP] = {MEASURED: 30.0, EXPECTED: None}

    def outcome(planned):
        changes = planned.changes
        distils = "distill" in changes["stages"]
        methods = [*(["distilled"] if distils else []), *changes["baselines"].split(",")]
        score = {
            "distilled": 80.0,
            "neighbors": 70.0,
            "centroids": 60.0,
            "random": 50.0,
            "full": 95.0,
        }

        def both(method, name):
            # On the other backbone, images that a run made or chose have 20 less.
            own = score[method] - 20 * (distils and name != changes["backbone.name"])
            return entry(own, own)

        probe = {
            name: {method: both(method, name) for method in methods}
            for name in changes["eval_backbones"].split(",")
        }
        lines = [{"step": step, "seconds": 0.04 * step} for step in (1, 2, 3)]
        results = {"probe": probe, "steps": 5000}
        return runner.Outcome(planned, results, lines, measured if planned.measure else None)

    sweep = experiments.find(config)
    outcomes = list(map(outcome, sweep.plan(config, {})))
    return experiments.tabulate(sweep, config, sweep.studies(config, outcomes))


def test_the_table_has_what_is_measured_beside_what_is_expected():
    written = result.to_markdown(fabricated((3.0, 2.0)))
    assert "No accuracy is known for these backbones on Imagenette" in written
    assert "| DINOv2 ViT-S/14: error of features, % | 3.00 | 2.00 |" in written
    assert "| CLIP ViT-B/32: ms a step | 30.00 |  |" in written
    assert "| CLIP ViT-B/32: ms a step, with the reading of photos | 40.00 |  |" in written
    # Images are compared on the backbone that they were made for or chosen by.
    assert re.search(r"\| distilled \| 80\.0[^|]*\| 80\.0[^|]*\| \[87\.2 ± 0\.1\] \|", written)
    assert re.search(r"\| look-alike real \| 70\.0[^|]*\| 70\.0", written)
    assert re.search(r"\| DINOv2 ViT-S/14 \| 80\.0[^|]*\| 60\.0", written)
    assert "the error of features is at most twice what is expected: yes" in written
    assert "at most twice what is expected: **no**" in result.to_markdown(fabricated((5.0, 2.0)))


@pytest.fixture(scope="module")
def sent(archive, tmp_path_factory):
    """The output of the quick experiment, and its folder."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patched.setenv("TFDS_DATA_DIR", str(home / "tfds"))
        patched.setattr(download, "IMAGENETTE", archive)
        workdir = home / "verify"
        arguments = ["launch.py", "--config=verify_gpu:quick", f"--workdir={workdir}"]
        assert launch.main([*arguments, "--config.data.workers=0"]) == 0
    return home


@pytest.mark.slow
def test_a_dry_run_makes_the_file_to_send(sent):
    packed = sent / "verify" / "verify_gpu.zip"
    assert packed.stat().st_size < 2_000_000
    with zipfile.ZipFile(packed) as parcel:
        content = {
            name.removeprefix("verify_gpu/"): parcel.read(name) for name in parcel.namelist()
        }
    assert {"table.md", "table.csv", "figure.png", "images.png", "machine.json", "plan.txt"} <= set(
        content
    )
    runs = {f"imagenette_digits_{kind}_seed0" for kind in ("contrastive", "distilled")}
    assert {name.split("/")[1] for name in content if name[:5] == "runs/"} == {
        "imagenette_real",
        *runs,
    }
    for run in runs:
        inside = {name.removeprefix(f"runs/{run}/") for name in content if f"/{run}/" in name}
        assert {"results.json", "config.json", "stages.json", "metrics.jsonl"} <= inside
        assert {"report.html", "distilled/metadata.jsonl"} <= inside
        assert len([name for name in inside if re.fullmatch(r"distilled/.+/000\.png", name)]) == 10
        # These hold real photos, weights' features, or megabytes.
        assert not {name.split("/")[-1] for name in inside} & {
            *("grid.png", "gallery.npz", "distilled.npz"),
        }
    here = str(sent).encode()
    assert [name for name, data in content.items() if here in data] == []
    machine = json.loads(content["machine.json"])
    assert machine["devices"] == ["cpu"] * len(machine["devices"])
    assert machine["versions"]["jax"]
    assert content["plan.txt"].decode().count("a step  ") == 2
    assert "## Claims" in content["table.md"].decode()


@pytest.mark.slow
def test_pages_to_send_show_no_real_photo(sent):
    folder = sent / "verify" / "runs" / "imagenette_digits_contrastive_seed0"
    own = (folder / "report.html").read_text()
    with zipfile.ZipFile(sent / "verify" / "verify_gpu.zip") as parcel:
        page = parcel.read(f"verify_gpu/runs/{folder.name}/report.html").decode()
    pictures = [set(re.findall(r"data:image/[^\"')]+", text)) for text in (own, page)]
    # Ten distilled images, with the animation and the plots at most.
    assert len(pictures[1]) < len(pictures[0]) - 10
