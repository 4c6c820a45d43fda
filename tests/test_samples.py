"""The picture of what an experiment's runs distilled."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from lgm_jax import experiments
from lgm_jax.data import imagenet
from lgm_jax.distilled import save_distilled
from lgm_jax.errors import UserError
from lgm_jax.experiments import figures, runner, samples
from tests.experimenting import load


def save_run(folder, values, names=("one", "two")):
    """A run folder with one plain grey image per class."""
    images = np.stack([np.full((8, 8, 3), value, np.float32) for value in values])
    save_distilled(folder / "distilled", images, np.arange(len(values), dtype=np.int32), names)
    return epath.Path(folder)


def written(tmp_path, folders):
    return np.asarray(Image.open(*samples.write(epath.Path(tmp_path), folders)).convert("L"))


def test_every_run_has_a_row_and_every_class_a_column(tmp_path):
    folders = {
        "full method": save_run(tmp_path / "a", (0.0, 0.2)),
        "without augment": save_run(tmp_path / "b", (0.4, 0.6)),
    }
    picture = written(tmp_path, folders)
    # From the lower right corner: four cells of 112 pixels, with gaps of 4.
    cells = [[picture[-4 - 60 - 116 * y, -4 - 60 - 116 * x] for x in (1, 0)] for y in (1, 0)]
    assert cells == [[0, 51], [102, 153]]
    # Names of classes above, of runs at the left.
    assert picture[:20].min() < 100
    assert all(picture[40 + 116 * y : 120 + 116 * y, :170].min() < 100 for y in (0, 1))


def test_the_class_of_figure_5_is_in_the_picture_of_table_3(tmp_path):
    classes = imagenet.SUBSETS["imagenet-100"]
    every = list(imagenet.names_by_wnid().values())
    names = [every[i] for i in classes]
    (pineapple,) = experiments.SWEEPS["table3"].classes
    assert names.index(pineapple) == 12
    levels = np.linspace(0, 1, len(names), dtype=np.float32)
    folders = {"full method": save_run(tmp_path / "a", levels, names)}

    def cells(*options):
        picture = np.asarray(
            Image.open(*samples.write(epath.Path(tmp_path), folders, *options)).convert("L")
        )
        return [round(float(picture[-60, -60 - 116 * x]) / 255 * 99) for x in reversed(range(10))]

    assert cells() == list(range(10))
    assert cells([pineapple]) == [12, *range(9)]


def test_classes_that_differ_are_not_named(tmp_path):
    folders = {
        "a": save_run(tmp_path / "a", (0.0, 0.0)),
        "b": save_run(tmp_path / "b", (0.0, 0.0), ("one", "three")),
    }
    assert written(tmp_path, folders)[:20].min() == 255


def test_nothing_is_drawn_of_nothing_and_lost_images_are_named(tmp_path):
    assert samples.write(epath.Path(tmp_path), {}) == []
    run = save_run(tmp_path / "a", (0.0, 0.0))
    (run / "distilled" / "distilled.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"distilled\.npz is damaged"):
        samples.write(epath.Path(tmp_path), {"a": run})


def test_runs_are_titled_by_what_tells_them_apart():
    def outcome(path, **axes):
        return runner.Outcome(runner.Planned(axes, {}), {}, path=epath.Path(path))

    def shown(*outcomes):
        return {title: str(path) for title, path in samples.titled_folders(outcomes).items()}

    common = {"set": "digits", "backbone": "here/a"}
    runs = [
        outcome("r", **common, variant=""),
        outcome("0", **common, variant="", seed=0),
        outcome("1", **common, variant="", seed=1),
        outcome("2", **common, variant="sfm", seed=0),
    ]
    assert shown(*runs) == {"as configured": "0", "sfm": "2"}
    assert shown(*runs[:2]) == {"digits a": "0"}
    assert shown(outcome("g", set="given", backbone="here/a", seed=0)) == {"a": "g"}
    other = outcome("3", set="digits", backbone="b", variant="sfm", seed=0)
    assert shown(*runs, other) == {"a": "0", "a sfm": "2", "b sfm": "3"}
    assert shown(runs[0]) == {}


@pytest.mark.parametrize(
    ("experiment", "rows"),
    [
        ("table3", ["full method", "without pyramid, augment"]),
        ("figure3", ["augmentations: 1", "augmentations: 2"]),
        ("ipc", ["images per class: 1", "images per class: 2"]),
    ],
)
def test_rows_of_variants_are_called_what_a_reader_calls_them(experiment, rows):
    config = load(experiment, ":quick")
    planned = experiments.find(config).plan(config, {})
    outcomes = [runner.Outcome(each, {}, path=epath.Path(each.name)) for each in planned]
    assert list(samples.titled_folders(outcomes)) == rows


def test_names_of_backbones_are_broken_between_their_words():
    title = "digits_contrastive+digits_distilled"
    lines = figures.wrap(title, 24).split("\n")
    assert "".join(lines) == title
    assert lines == ["digits_", "contrastive+digits_", "distilled"]
    assert figures.wrap("without augment", 24) == "without augment"
