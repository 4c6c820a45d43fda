"""Distilled sets on disk: what gives the labels, and what is refused."""

import json

import numpy as np
import pytest

import lgm_jax
from lgm_jax.data.class_folders import NUMBERED
from lgm_jax.distilled import ARRAYS, METADATA, first_of_classes, read_distilled, save_distilled
from lgm_jax.errors import UserError

NAMES = ["ant", "hot dog", "cat"]
# The first image is darkest.
IMAGES = np.linspace(0, 0.9, 3, dtype=np.float32)[:, None, None, None] * np.ones((3, 4, 4, 3), "f4")
LABELS = np.arange(3, dtype=np.int32)


@pytest.fixture
def saved(tmp_path):
    """A saved set of three classes, one image each, darkest first."""
    save_distilled(tmp_path / "set", IMAGES, LABELS, NAMES)
    return tmp_path / "set"


@pytest.fixture
def pngs(saved):
    """The same without the arrays."""
    (saved / "distilled.npz").unlink()
    return saved


def describe(folder, **changes):
    """Rewrites the first line of metadata.jsonl with other values; `None` takes one away."""
    path = folder / METADATA
    first, *rest = path.read_text().splitlines()
    entry = {k: v for k, v in (json.loads(first) | changes).items() if v is not None}
    path.write_text("\n".join([json.dumps(entry), *rest]) + "\n")


def order(images):
    """The images' ranks by brightness."""
    return np.argsort(np.argsort(images.mean(axis=(1, 2, 3)))).tolist()


def test_metadata_gives_labels_and_names_whatever_the_folders_are_called(pngs):
    lines = [json.loads(line) for line in (pngs / METADATA).read_text().splitlines()]
    for entry, name in zip(lines, "zyx", strict=True):
        old, file = entry["file_name"].split("/")
        (pngs / old).rename(pngs / name)
        entry["file_name"] = f"{name}/{file}"
    (pngs / METADATA).write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = read_distilled(pngs)
    assert (found.class_names, found.labelled_by) == (NAMES, METADATA)
    assert found.labels.tolist() == order(found.images) == [0, 1, 2]


def test_numbered_folders_give_labels_by_number_not_by_spelling(tmp_path):
    images = np.linspace(0, 1, 11, dtype=np.float32)[:, None, None, None]
    images = images * np.ones((11, 2, 2, 3), "f4")
    names = [f"class {i}" for i in range(11)]
    save_distilled(tmp_path, images, np.arange(11, dtype=np.int32), names)
    (tmp_path / "distilled.npz").unlink()
    (tmp_path / METADATA).unlink()
    for folder in list(tmp_path.iterdir()):
        # Without leading zeros, 10 sorts before 2.
        number, _, rest = folder.name.partition("_")
        folder.rename(tmp_path / f"{int(number)}_{rest}")
    found = read_distilled(tmp_path)
    assert found.labelled_by == NUMBERED
    assert found.class_names == [name.replace(" ", "_") for name in names]
    assert found.labels.tolist() == order(found.images) == list(range(11))


def test_other_folders_are_in_sorted_order_and_hidden_ones_no_class(pngs):
    (pngs / METADATA).unlink()
    for folder, name in zip(sorted(pngs.iterdir()), ("b", "a", "c"), strict=True):
        folder.rename(pngs / name)
    (pngs / ".cache").mkdir()
    images, labels, names = lgm_jax.load_distilled(pngs)
    assert (names, labels.tolist(), order(images)) == (["a", "b", "c"], [0, 1, 2], [1, 0, 2])
    assert read_distilled(pngs).labelled_by is None


def test_metadata_of_another_program_that_says_nothing_of_classes_is_no_matter(pngs):
    lines = [{"file_name": "0_ant/000.png", "text": "an ant"}, {"file_name": "readme.png"}]
    (pngs / METADATA).write_text("\n".join(map(json.dumps, lines)))
    assert read_distilled(pngs).class_names == ["ant", "hot_dog", "cat"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: no JSON object"),
        ('{"label": 1}', "line 1: no object with a file_name"),
        ('{"file_name": 7}', "line 1: no object with a file_name"),
        ('{"file_name": "0_ant/000.png", "label": "ant"}', "label must be a whole number"),
        ('{"file_name": "0_ant/000.png", "label": true}', "label must be a whole number"),
        ('{"file_name": "0_ant/000.png", "class_name": 3}', "class_name a text"),
        ('{"file_name": "0_ant/000.png", "label": 0}', "the labels 0 to 2, one each"),
    ],
)
def test_foreign_metadata_is_refused_by_line(pngs, line, words):
    (pngs / METADATA).write_text(line + "\n")
    with pytest.raises(UserError, match=words):
        lgm_jax.load_distilled(pngs)


def test_metadata_that_contradicts_itself_is_refused(pngs):
    describe(pngs, label=2)
    with pytest.raises(UserError, match="one each"):
        lgm_jax.load_distilled(pngs)
    path = pngs / METADATA
    path.write_text(path.read_text().replace("1_hot_dog", "0_ant"))
    with pytest.raises(UserError, match="line 2: 0_ant has another label"):
        lgm_jax.load_distilled(pngs)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY", b"PK\x03\x04 cut short"])
def test_damaged_arrays_are_refused(saved, content):
    (saved / "distilled.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"distilled\.npz is damaged"):
        lgm_jax.load_distilled(saved)


def test_arrays_cut_short_are_refused(saved):
    path = saved / "distilled.npz"
    whole = path.read_bytes()
    for keep in (0.2, 0.5, 0.9):
        path.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(UserError, match=r"distilled\.npz is damaged"):
            lgm_jax.load_distilled(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None}, "images"),
        ({"images": IMAGES[..., 0]}, "images are float32"),
        ({"images": (IMAGES * 255).astype(np.uint8)}, "images are uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images are float32"),
        ({"images": 2 * IMAGES - 1}, "within"),
        ({"images": IMAGES * np.float32("nan")}, "within"),
        ({"labels": LABELS[:2]}, "labels are int32"),
        ({"labels": LABELS / 2}, "labels are float64"),
        ({"labels": LABELS + 1}, "within 0 to 2"),
        ({"labels": LABELS - 1}, "within 0 to 2"),
        ({"class_names": np.arange(3)}, "class_names"),
        ({"class_names": np.asarray(NAMES, object)}, "damaged"),
    ],
)
def test_arrays_of_another_program_are_refused(saved, changes, words):
    arrays = {"images": IMAGES, "labels": LABELS, "class_names": np.asarray(NAMES)} | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(saved / "distilled.npz", **kept)
    with pytest.raises(UserError, match=words):
        lgm_jax.load_distilled(saved)


def test_broken_and_disguised_images_are_refused(pngs):
    image = next((pngs / "1_hot_dog").iterdir())
    whole = image.read_bytes()
    # Within the header, and within the pixels.
    for content in (whole[:20], whole[:50], whole.replace(b"IDAT", b"IDAx"), b"GIF89a"):
        image.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read image .*1_hot_dog"):
            lgm_jax.load_distilled(pngs)


def test_home_is_expanded(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    images, _, _ = lgm_jax.load_distilled("~/set")
    np.testing.assert_array_equal(images, IMAGES)


def test_soft_labels_come_back_and_foreign_ones_are_checked(tmp_path):
    soft = np.asarray([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    save_distilled(tmp_path, IMAGES, LABELS, NAMES, soft)
    found = read_distilled(tmp_path)
    np.testing.assert_array_equal(found.probabilities, soft)
    assert found.labels.tolist() == [0, 1, 2]
    assert len(lgm_jax.load_distilled(tmp_path)) == 3
    for wrong in (soft[:2], soft.astype(np.float64), 2 * soft, soft - 0.5, soft * np.nan):
        arrays = {"images": IMAGES, "labels": LABELS, "class_names": np.asarray(NAMES)}
        np.savez(tmp_path / "distilled.npz", **arrays, probabilities=wrong)
        with pytest.raises(UserError, match="probabilities are not float32 of each image"):
            read_distilled(tmp_path)


def test_hard_labels_bring_no_probabilities(saved):
    assert read_distilled(saved).probabilities is None


def test_the_first_image_of_each_of_the_first_classes(tmp_path):
    images = np.stack([np.full((4, 4, 3), value, np.float32) for value in (0.2, 0.4, 0.6, 0.8)])
    labels = np.asarray([0, 0, 1, 2], np.int32)
    save_distilled(tmp_path / "distilled", images, labels, ["a", "b", "c"])

    def first(*options):
        found = first_of_classes(tmp_path, 2, *options)
        return [(name, round(float(image.mean()), 2)) for name, image in found]

    assert first() == [("a", 0.2), ("b", 0.6)]
    assert first(["c"]) == [("c", 0.8), ("a", 0.2)]
    # As of a run that others have given, without the unrounded values.
    (tmp_path / "distilled" / ARRAYS).unlink()
    assert first() == [("a", 0.2), ("b", 0.6)]
