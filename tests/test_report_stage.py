"""What the stages write for the report, of sessions that are made up: nothing is distilled."""

import errno
import types

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from lgm_jax import distill, hosts, images, runs
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.report.grid import draw_grid
from lgm_jax.session import Session
from lgm_jax.stages import probing, progress, reporting
from tests.run_folders import blobs, write_run

SIDE = 8


def make_session(path, classes, ipc=1, **values):
    """A session with nothing but what pictures need."""
    labels = np.repeat(np.arange(classes, dtype=np.int32), ipc)
    pixels = blobs(np.random.default_rng(0), len(labels), SIDE)
    train = ArraySplit((255 * pixels).astype(np.uint8), labels)
    names = [f"class {number}" for number in range(classes)]
    config = types.SimpleNamespace(
        steps=10, image_every=5, ipc=ipc, seed=0, probe=types.SimpleNamespace(runs=1)
    )
    session = object.__new__(Session)
    session.__dict__.update(
        {
            "config": config,
            "run": runs.Run(epath.Path(path), "this"),
            "recipe": types.SimpleNamespace(
                task=distill.Distillation(classes, images.Pixels(SIDE), SIDE, ipc=ipc)
            ),
            "dataset": types.SimpleNamespace(
                class_names=names, num_classes=classes, splits={"train": train}
            ),
            "distilled": ArraySplit(pixels, labels),
            "centroids": np.arange(len(labels)),
        }
        | values
    )
    return session


def picture_size(path):
    with Image.open(path) as picture:
        return picture.size


def test_pictures_on_the_way_show_some_of_many_images(tmp_path, monkeypatch):
    session = make_session(tmp_path, 10)
    monkeypatch.setattr(progress, "MOST_DRAWN", 4)
    shown = session.distilled.images
    drawn = progress.write_progress(session, 5, shown)
    expected = draw_grid(shown[[1, 4, 7, 9]], [f"class {i}" for i in (1, 4, 7, 9)])
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))
    assert picture_size(tmp_path / "progress" / "step_000005.png") == expected.size


def test_grid_shows_some_of_many_pairs(tmp_path, monkeypatch):
    session = make_session(tmp_path, 10)
    monkeypatch.setattr(reporting, "MOST_DRAWN", 4)
    reporting.write_pairs(session)
    # Two pairs beside each other, as wide as a slide.
    two = draw_grid(session.distilled.images[:4], [""] * 4, 4, 1920)
    assert two.size[0] >= 1920
    assert picture_size(tmp_path / "grid.png") == two.size
    assert not list(tmp_path.glob("*.tmp"))


def test_only_the_first_process_draws_but_all_compute_features(tmp_path, monkeypatch):
    asked = []

    def features(backbone, split):
        asked.append(split)
        return np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)

    def open_session():
        asked.clear()
        return make_session(
            tmp_path,
            4,
            features=features,
            features_syn=features(None, "distilled"),
            backbones=[Backbone("toy", jnp.asarray, None, 6, SIDE, "toy")],
        )

    session = open_session()
    monkeypatch.setattr(hosts.this, "index", 1)
    assert reporting.prepare_gallery(session) is None
    reporting.write_pairs(session)
    assert progress.write_progress(session, 5, session.distilled.images) is None
    assert set(asked) == {"distilled", "train"}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    others = list(asked)
    made = reporting.prepare_gallery(open_session())
    assert made is not None
    assert made.map is not None
    # Whoever asks alone would wait for ever.
    assert asked == others


def test_pictures_that_cannot_be_written_do_not_end_the_run(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "going", finished=False)
    session = make_session(folder, 4)
    shown = session.distilled.images
    (folder / "progress").write_text("in the way")
    (folder / runs.METRICS).write_text("{")
    assert progress.write_progress(session, 5, shown) is not None
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" is left out: ")[0] for line in said] == [
        "note: the picture of step 5",
        "note: the page of step 5",
    ]
    # What can be written is.
    progress.write_frame(session, 5, shown)
    assert (folder / "timelapse" / "step_000005.webp").is_file()

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress, "write_unfinished_page", fill)
    with pytest.raises(OSError, match="No space left"):
        progress.write_progress(session, 5, shown)


def test_timelapse_begins_before_the_first_step(tmp_path):
    session = make_session(tmp_path, 4)
    progress.write_frame(session, 0, session.distilled.images)
    assert [path.name for path in (tmp_path / "timelapse").iterdir()] == ["step_000000.webp"]


def test_learning_curves_are_thinned_averaged_and_finite():
    losses = np.linspace(3, 1, 2000, dtype=np.float32).reshape(2, 1000)
    curve = probing.loss_curve(losses)
    assert 40 < len(curve) <= 50
    assert (curve[0][0], curve[-1][0]) == (1, 1000)
    np.testing.assert_allclose([loss for _, loss in curve][::49], [2.5, 1.5], atol=1e-3)
    losses[1, 500:] = np.nan
    assert 400 < probing.loss_curve(losses)[-1][0] <= 500
    assert [epoch for epoch, _ in probing.loss_curve(np.ones((1, 3)))] == [1, 2, 3]
    assert probing.loss_curve(None) is None
