"""Predictions by class, their confusion, and the paired test of two rows."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lgm_jax import files, predictions, probe
from lgm_jax.errors import UserError

LABELS = np.asarray([0, 0, 1, 1, 1, 2], np.int32)
NAMED = np.asarray([[0, 1, 1, 1, 2, 0], [0, 0, 1, 2, 2, -1]], np.int32)


def test_heads_name_the_class_of_the_highest_score():
    heads = {
        "kernel": jnp.asarray([[[0.0, 1, 1]], [[1.0, 0, 0]]]),
        "bias": jnp.zeros((2, 3)),
    }
    features = np.asarray([[1.0], [-1.0], [np.nan]], np.float32)
    scores = probe.evaluate(heads, features, np.asarray([1, 0, 0], np.int32))
    # Of equal scores the lower index; nothing where there is no number.
    assert scores["named"].tolist() == [[1, 0, -1], [0, 1, -1]]
    np.testing.assert_allclose(scores["top1"], [200 / 3, 0], rtol=1e-6)


def test_accuracy_by_class_is_a_mean_over_runs():
    assert predictions.by_class(NAMED, LABELS, 4) == [75.0, 50.0, 0.0, None]


def test_confusion_counts_images_of_each_class():
    found = predictions.confusion(NAMED, LABELS)
    entries = zip(found["class"], found["named"], found["images"], strict=True)
    assert list(entries) == [
        *((0, 0, 1.5), (0, 1, 0.5), (1, 1, 1.5), (1, 2, 1.5), (2, -1, 0.5), (2, 0, 0.5)),
    ]


def test_single_probes_are_compared_by_mcnemar():
    # 12 images that only the first names rightly, 4 that only the second does, of 100.
    a, b = np.ones((1, 100), bool), np.ones((1, 100), bool)
    b[:, :12], a[:, 12:16] = False, False
    found = predictions.compare(a, b)
    assert found["difference"] == 8.0
    z = found["difference"] / found["standard_error"]
    assert z**2 == pytest.approx((12 - 4) ** 2 / (12 + 4), rel=1e-3)
    # Of a normal distribution, beyond two standard deviations.
    assert found["p"] == pytest.approx(0.0455)
    # Images that both name rightly do not count, however many.
    c, d = (np.concatenate([x, np.ones((1, 900), bool)], axis=1) for x in (a, b))
    assert predictions.compare(c, d)["p"] == found["p"]
    assert predictions.compare(a, a) == {"difference": 0.0, "standard_error": 0.0, "p": 1.0}


def test_spread_of_runs_adds_to_the_error():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 400)) < 0.8, rng.random((5, 400)) < 0.7
    each = a.mean(axis=0) - b.mean(axis=0)
    expected = np.sum(each**2) / 400**2 + a.mean(axis=1).var(ddof=1) / 3
    expected += b.mean(axis=1).var(ddof=1) / 5
    found = predictions.compare(a, b)
    assert found["standard_error"] == pytest.approx(100 * expected**0.5, rel=1e-3)
    swapped = predictions.compare(b, a)
    assert swapped == found | {"difference": -found["difference"]}


def test_paired_test_keeps_its_level():
    """Two probes of equal accuracy differ at the 5 % level in about 5 % of trials."""
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(400):
        ability = rng.random(300)
        a, b = (rng.random((1, 300)) < ability for _ in range(2))
        rejected += predictions.compare(a, b)["p"] < 0.05
    assert 8 <= rejected <= 34


def test_heads_that_name_no_class_are_kept_so(tmp_path):
    """The heads of a probe that diverged; the file takes other rows afterwards."""
    path, nothing = epath.Path(tmp_path) / "predictions.npz", np.full((2, 6), -1, np.int32)
    predictions.add(path, "vit", "random", nothing, "test", LABELS)
    predictions.add(path, "vit", "full", NAMED, "test", LABELS)
    found = predictions.load(path)
    np.testing.assert_array_equal(found["vit/random"], nothing)
    np.testing.assert_array_equal(found["vit/full"], NAMED)
    np.testing.assert_array_equal(found["labels/test"], LABELS)


def test_predictions_of_other_probes_are_left_out(tmp_path):
    path = epath.Path(tmp_path / "predictions.npz")
    top1 = (100 * (LABELS[None] == NAMED).mean(axis=1)).tolist()
    entries = {"distilled": {"top1_runs": top1}, "random": {"top1_runs": [1.0, 2.0]}}
    for method in entries:
        predictions.add(path, "a/b", method, NAMED, "test", LABELS)
    rows = predictions.describe(path, entries, "a/b", LABELS, 3)
    assert rows["distilled"]["per_class"] == [75.0, 50.0, 0.0]
    assert rows["distilled"]["confusion"] == predictions.confusion(NAMED, LABELS)
    nothing = {"per_class": None, "confusion": None, "against": None}
    assert rows["distilled"]["against"] == {}
    assert rows["random"] == nothing
    # A run of an earlier version has none.
    path.unlink()
    assert predictions.describe(path, entries, "a/b", LABELS, 3)["distilled"] == nothing
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"predictions\.npz is damaged: delete it"):
        predictions.describe(path, entries, "a/b", LABELS, 3)


def test_numbers_of_a_list_share_a_line(tmp_path):
    value = {
        "a": [1, -2.5, 1e-7, None],
        "b": ["x", "[ 1, 2 ]"],
        "c": [[1, 2], []],
        "d": "\n[\n1\n]",
    }
    path = epath.Path(tmp_path / "x.json")
    files.write_json(path, value)
    text = path.read_text()
    assert json.loads(text) == value
    assert ' "a": [1, -2.5, 1e-07, null],' in text.splitlines()
