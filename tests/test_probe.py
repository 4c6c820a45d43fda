"""Probes and baselines on features whose answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import features, probe, solvers
from lgm_jax import heads as linear
from lgm_jax.augment import PRESETS
from lgm_jax.backbones import Backbone
from lgm_jax.data.dataset import ArraySplit
from lgm_jax.errors import UserError
from lgm_jax.features import Views, embed
from lgm_jax.identity import describe
from tests.marks import slow

SIDE, CLASSES = 4, 7

SILENT = dataclasses.replace(PRESETS["paper"], noise=0.0)

QUIET = dataclasses.replace(SILENT, noise_mean=0.3, noise_std=0.7)


# Flips always, crops never.
FIXED = dataclasses.replace(SILENT, flip=1.0, scale=(1.0, 1.0))


def colors(seed, count):
    """Noisy images of one colour per class, uint8, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    palette = np.random.default_rng(0).integers(30, 220, (CLASSES, 1, 1, 3))
    noise = rng.integers(-12, 12, (count, SIDE, SIDE, 3))
    return ArraySplit((palette[labels] + noise).astype(np.uint8), labels.astype(np.int32))


@pytest.fixture(scope="module")
def backbone():
    """A frozen random map from pixels to features, large enough to be learnt from quickly."""
    kernel = 8 * jax.random.normal(jax.random.key(0), (SIDE * SIDE * 3, 24)) / SIDE

    def apply(params, images):
        return jnp.tanh(images.reshape(images.shape[0], -1) @ params - 4)

    return Backbone("toy", apply, kernel, 24, SIDE, "toy")


def protocol(**changes):
    values = {"epochs": 30, "batch": 10, "runs": 3, "crop": SIDE, "augment": "none"}
    values |= {"augmentation": PRESETS["paper"], "learning_rate": 1.0} | changes
    return probe.Protocol(**values)


def rows_of(count, runs=3):
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (runs, count))


def train(backbone, split, protocol, rows=None, seed=0):
    rows = rows_of(len(split.labels), protocol.runs) if rows is None else rows
    labels = jnp.asarray(split.labels)[rows]
    key = jax.random.key(seed)
    images = jnp.asarray(split.images)
    return probe.train(key, backbone, images, labels, rows, CLASSES, protocol).heads


def center_crops(backbone, split):
    return embed(backbone, split, Views(SIDE), jax.random.key(0)).whole()[0]


@pytest.mark.parametrize("augment", ["views", slow("fresh"), slow("none")])
def test_probe_learns_what_is_separable(backbone, augment):
    heads = train(backbone, colors(1, 33), protocol(augment=augment, views=2, epochs=60))
    test = colors(2, 70)
    scores = probe.evaluate(heads, center_crops(backbone, test), test.labels)
    assert scores["top1"].shape == (3,)
    assert scores["top1"].min() > 95
    shuffled = np.roll(test.labels, 1)
    assert probe.evaluate(heads, center_crops(backbone, test), shuffled)["top1"].max() < 30


@pytest.mark.slow
def test_losses_are_those_of_each_epochs_images(backbone):
    """Of a head that does not move: in every epoch the loss of all images, a short batch or not."""
    split = colors(1, 7)
    still = protocol(epochs=3, batch=4, runs=2, learning_rate=1e-12)
    images, rows = jnp.asarray(split.images), rows_of(7, 2)
    labels = jnp.asarray(split.labels)
    key = jax.random.key(0)
    heads, losses = probe.train(key, backbone, images, labels[rows], rows, CLASSES, still)
    plain = jnp.asarray(center_crops(backbone, split))
    expected = jax.vmap(lambda head: linear.linear_probe_loss(head, plain, labels))(heads)
    assert losses.shape == (2, 3)
    assert not np.isclose(losses[0, 0], losses[1, 0], rtol=1e-3)
    # Measured: 1e-7.
    np.testing.assert_allclose(losses, np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)


@pytest.mark.slow
def test_losses_fall_as_a_probe_learns(backbone):
    split, rows = colors(1, 33), rows_of(33)
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)[rows]
    for augment in solvers.AUGMENTS:
        key, chosen = jax.random.key(0), protocol(augment=augment, views=2)
        losses = probe.train(key, backbone, images, labels, rows, CLASSES, chosen).losses
        assert losses.shape == (3, 30)
        assert (losses[:, -1] < 0.5 * losses[:, 0]).all()
    minimum = protocol(solver="lbfgs", epochs=3)
    assert probe.train(key, backbone, images, labels, rows, CLASSES, minimum).losses is None


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_other_runs_images(backbone):
    split = colors(1, 33)
    rows = np.stack([np.arange(20), np.arange(20), np.arange(10, 30)]).astype(np.int32)
    first = train(backbone, split, protocol(), jnp.asarray(rows))
    rows[2] = np.arange(20)
    second = train(backbone, split, protocol(), jnp.asarray(rows))
    np.testing.assert_allclose(first["kernel"][:2], second["kernel"][:2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(first["kernel"][2], second["kernel"][2], atol=1e-2)


@pytest.mark.slow
def test_runs_differ_even_on_the_same_images(backbone):
    kernel = train(backbone, colors(1, 20), protocol(augment="views"))["kernel"]
    assert not np.allclose(kernel[0], kernel[1], atol=1e-3)


def test_one_view_of_no_augmentation_is_the_centre_crop(backbone):
    """Without augmentation, cached features are those that evaluation sees."""
    split = colors(3, 14)
    table = probe.view_table(
        jax.random.key(0), backbone, jnp.asarray(split.images), rows_of(14), protocol()
    )
    features = center_crops(backbone, split)
    assert table.shape == (1, 1, 14, 24), "one for all three runs"
    np.testing.assert_allclose(table[0, 0], features, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fresh_views_load_an_image_once_an_epoch_for_all_runs(backbone):
    split, loaded = colors(3, 14), []

    def load(rows, epochs):
        loaded.extend(zip(rows.tolist(), epochs.tolist(), strict=True))
        return split.images[rows]

    fresh = protocol(augment="fresh", epochs=2)
    rest = (jnp.asarray(split.labels), rows_of(14), CLASSES, fresh)
    trained = probe.train(jax.random.key(0), backbone, load, *rest)
    assert sorted(loaded) == [(row, epoch) for row in range(14) for epoch in range(2)]
    held = probe.train(jax.random.key(0), backbone, split.images, *rest)
    jax.tree.map(np.testing.assert_array_equal, trained.heads, held.heads)


def test_features_do_not_depend_on_the_batch_they_are_in(backbone, monkeypatch):
    split = colors(3, 23)
    monkeypatch.setattr(features, "BATCH", 5)
    views = protocol(augment="views", views=2)
    arguments = (jax.random.key(0), backbone, jnp.asarray(split.images), rows_of(23), views)
    small = probe.view_table(*arguments)
    monkeypatch.undo()
    # Measured: 3e-6, where a kernel as large as this one meets float32.
    np.testing.assert_allclose(small, probe.view_table(*arguments), rtol=1e-5, atol=1e-5)


def test_last_short_batch_counts_each_image_once(backbone):
    """Filling up the last batch of an epoch must not train on anything twice."""
    split = colors(1, 7)
    steps = protocol(epochs=1, batch=4, runs=1, learning_rate=1e-3)
    head = train(backbone, split, steps)
    doubled = np.concatenate([np.arange(7), np.arange(1)])[None].astype(np.int32)
    other = train(backbone, split, steps, jnp.asarray(doubled))
    assert not np.allclose(head["kernel"], other["kernel"], atol=1e-9)
    # Two updates of Adam at a fixed small rate move no weight further than two rates.
    start = train(backbone, split, protocol(epochs=1, batch=4, runs=1, learning_rate=1e-12))
    assert np.abs(head["kernel"] - start["kernel"]).max() <= 2.1 * 1e-3 * 4 / 256


@pytest.mark.parametrize(
    ("count", "augment", "rate"),
    [
        (100, "none", 3.9e-4),
        *(slow(2, "none", 7.8e-6), slow(4, "fresh", 1.56e-5), slow(10, "views", 3.9e-5)),
    ],
)
def test_rate_follows_the_images_of_an_update(backbone, count, augment, rate):
    """Adam's first update moves every weight by the learning rate, 0.001 * min(100, n) / 256."""
    split, few = colors(1, count), {"epochs": 1, "batch": 100, "augment": augment, "views": 2}
    start = train(backbone, split, protocol(**few, learning_rate=1e-12))
    moved = train(backbone, split, protocol(**few, learning_rate=0.001))
    for name, before in start.items():
        steps = np.abs(np.asarray(moved[name] - before))
        # Measured: within 1 % where a weight of 0.04 meets float32.
        np.testing.assert_allclose(np.median(steps), rate, rtol=0.05)
        assert steps.max() < 1.05 * rate


@pytest.mark.parametrize(
    ("count", "rate"), [(2, 7.8125e-6), (10, 3.90625e-5), (99, 3.8671875e-4), (1000, 3.90625e-4)]
)
def test_rate_is_that_of_the_images_there_are(count, rate):
    rates = protocol(batch=100, learning_rate=0.001).learning_rates(count)
    assert float(rates(0)) == pytest.approx(rate)


def test_top5_counts_five_guesses():
    heads = {"kernel": jnp.zeros((1, 3, CLASSES)), "bias": jnp.arange(7.0)[None]}
    features = np.zeros((CLASSES, 3), np.float32)
    scores = probe.evaluate(heads, features, np.arange(CLASSES, dtype=np.int32))
    assert scores["top1"] == pytest.approx(100 / 7)
    assert scores["top5"] == pytest.approx(500 / 7)


def test_top5_is_none_below_six_classes():
    heads = {"kernel": jnp.zeros((1, 3, 5)), "bias": jnp.arange(5.0)[None]}
    labels = np.zeros((2,), np.int32)
    assert probe.evaluate(heads, np.zeros((2, 3), np.float32), labels)["top5"] is None


def test_lbfgs_reaches_the_minimum(backbone):
    """At the minimum the gradient of cross-entropy plus ridge vanishes, whatever the start."""
    split = colors(1, 33)
    settings = protocol(solver="lbfgs", augment="views", views=2, epochs=150, ridge=0.05)
    arguments = (jax.random.key(0), backbone, jnp.asarray(split.images), rows_of(33), settings)
    key_views = jax.random.split(arguments[0])[0]
    heads = train(backbone, split, settings)
    table = probe.view_table(key_views, *arguments[1:])
    features = jnp.asarray(table[1].reshape(66, -1))
    scale = jax.lax.rsqrt(jnp.mean(features**2))
    head = {"kernel": heads["kernel"][1] / scale, "bias": heads["bias"][1]}
    labels = jnp.tile(jnp.asarray(split.labels), 2)
    gradient = linear.head_gradient(head, features * scale, labels)
    # Measured: 1e-6; the ridge alone is 1e-2.
    np.testing.assert_allclose(gradient["kernel"], -0.05 * head["kernel"], atol=1e-5)
    np.testing.assert_allclose(gradient["bias"], 0, atol=1e-5)


def class_means(key, features, labels, num_classes, protocol):
    """A solver of anybody's own: the nearest mean of a class, as a head."""
    rows = features.reshape(-1, features.shape[-1])
    table = jax.nn.one_hot(jnp.tile(labels, features.shape[0]), num_classes)
    means = (table.T @ rows) / jnp.sum(table, axis=0)[:, None]
    return {"kernel": means.T, "bias": -0.5 * jnp.sum(means**2, axis=-1)}


@pytest.mark.parametrize("solver", [f"{__name__}:class_means", slow(class_means)])
def test_a_solver_may_be_anybodys_own(backbone, solver):
    """By its name or itself; accuracies are those of the nearest means, computed by hand."""
    split, test = colors(1, 33), colors(2, 70)
    rows = np.stack([np.arange(20), np.arange(10, 30), np.arange(13, 33)]).astype(np.int32)
    settings = protocol(solver=solver, augment="views", views=2)
    heads = train(backbone, split, settings, rows)
    scores = probe.evaluate(heads, center_crops(backbone, test), test.labels)
    key = jax.random.split(jax.random.key(0))[0]
    table, wanted = probe.view_table(key, backbone, split.images, rows, settings), test.labels
    for seen, labels, top1 in zip(table, split.labels[rows], scores["top1"], strict=True):
        means = np.stack([seen[:, labels == k].mean((0, 1)) for k in range(CLASSES)])
        distances = np.linalg.norm(center_crops(backbone, test)[:, None] - means[None], axis=-1)
        assert top1 == pytest.approx(100 * np.mean(distances.argmin(axis=1) == wanted))
    assert probe.repeats_differ(settings), "unless it says otherwise"
    with pytest.raises(UserError, match="needs augment=views or none"):
        dataclasses.replace(settings, augment="fresh")


def test_what_is_no_solver_is_refused():
    names = ("no.such.module:f", *(f"{__name__}:{name}" for name in ("no", "SIDE", "Backbone")))
    for name in names:
        with pytest.raises(UserError, match="solver"):
            protocol(solver=name)
    with pytest.raises(UserError, match=r"arrays of .*'kernel': \(2, 7\).*, not of \(6, 2\)"):
        probe.fit(
            jax.random.key(0),
            np.ones((6, 2), np.float32),
            np.arange(6),
            CLASSES,
            solver=lambda key, features, *rest: features[0],
        )


@pytest.mark.slow
def test_a_fit_of_features_takes_little(backbone):
    """One head of least cross-entropy by default, of hard or soft labels, of one or more views."""
    split, test = colors(1, 33), colors(2, 70)
    rows = features.embed_images(backbone, split.images, crop=SIDE)
    np.testing.assert_array_equal(rows, center_crops(backbone, split))
    key = jax.random.key(0)
    heads = probe.fit(key, rows, split.labels, CLASSES).heads
    assert heads["kernel"].shape == (1, 24, CLASSES)
    scores = probe.evaluate(heads, features.embed_images(backbone, test.images), test.labels)
    assert scores["top1"][0] > 95
    twice, soft = np.stack([rows, rows]), np.asarray(jax.nn.one_hot(split.labels, CLASSES))
    found = probe.fit(key, twice, soft, CLASSES).heads
    for name, leaf in heads.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-2, atol=1e-3)
    assert len(probe.fit(key, rows, split.labels, CLASSES, solver="adam", runs=2).losses) == 2


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.arange(4), "shape"),
        (np.arange(6) + 2, "from 0 to 6"),
        (np.arange(6) - 1, "from 0 to 6"),
        (np.ones((6, 3), np.float32), "shape"),
    ],
)
def test_a_fit_refuses_labels_that_do_not_fit(labels, text):
    with pytest.raises(UserError, match=text):
        probe.fit(jax.random.key(0), np.ones((6, 2), np.float32), labels, CLASSES)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused_and_not_counted_as_right(label):
    heads = {"kernel": jnp.zeros((1, 3, CLASSES)), "bias": jnp.arange(7.0)[None]}
    with pytest.raises(UserError, match="from 0 to 6"):
        probe.evaluate(heads, np.zeros((2, 3), np.float32), np.asarray([0, label], np.int32))


def test_lbfgs_refuses_images_that_change():
    with pytest.raises(UserError, match="lbfgs"):
        protocol(solver="lbfgs", augment="fresh")


@pytest.mark.slow
def test_shared_views_are_the_same_for_all_runs(backbone):
    split = colors(1, 14)
    tables = [
        probe.view_table(
            jax.random.key(0),
            backbone,
            jnp.asarray(split.images),
            rows_of(14),
            protocol(augment="views", views=2, share_views=share),
        )
        for share in (True, False)
    ]
    assert [len(table) for table in tables] == [1, 3]
    assert not np.allclose(tables[1][0], tables[1][1], atol=1e-2)
    np.testing.assert_allclose(tables[0][0], tables[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        slow({"solver": "lbfgs", "augment": "none"}, False),
        slow({"solver": "lbfgs", "augment": "views"}, True),
        ({"solver": "lbfgs", "augment": "views", "share_views": True}, False),
        slow({"solver": "lbfgs", "augment": "views", "augmentation": FIXED}, False),
        slow({"solver": "adam", "augment": "none"}, True),
    ],
)
def test_runs_that_cannot_differ_are_known_beforehand(backbone, changes, differ):
    settings = protocol(views=2, epochs=5, **changes)
    assert probe.repeats_differ(settings) == differ
    kernel = train(backbone, colors(1, 20), settings)["kernel"]
    # Measured: 5e-3 and more where they differ, to rounding of a batched solve where not.
    assert (np.abs(kernel[0] - kernel[1]).max() > 1e-4) == differ


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (
            {"solver": "adam", "augment": "none"},
            {"ridge": 1.0, "views": 5, "share_views": True, "augmentation": None},
        ),
        slow({"solver": "lbfgs", "augment": "none"}, {"batch": 3, "learning_rate": 2.0}),
        slow(
            {"solver": "lbfgs", "augment": "views", "augmentation": SILENT, "runs": 1},
            {"augmentation": QUIET, "share_views": True},
        ),
    ],
)
def test_fields_that_are_not_relevant_change_nothing(backbone, base, change):
    one, other = (protocol(epochs=3, **base | extra) for extra in ({}, change))
    assert one != other
    assert describe(one) == describe(other)
    kernels = [train(backbone, colors(1, 20), settings)["kernel"] for settings in (one, other)]
    np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"augment": "none"}, {"batch": 3}),
        ({"augment": "none"}, {"learning_rate": 0.5}),
        ({"augment": "none"}, {"epochs": 4}),
        ({"augment": "none"}, {"runs": 4}),
        ({"augment": "none"}, {"augment": "views"}),
        ({"augment": "none"}, {"solver": "lbfgs"}),
        ({"augment": "none", "solver": "lbfgs"}, {"ridge": 1.0}),
        ({"augment": "views"}, {"views": 2}),
        ({"augment": "views"}, {"share_views": True}),
        ({"augment": "fresh"}, {"augmentation": SILENT}),
        ({"augment": "fresh"}, {"augmentation": None}),
        ({"augment": "fresh"}, {"augmentation": QUIET}),
    ],
)
def test_fields_that_change_the_heads_are_relevant(base, change):
    one, other = (protocol(**base | extra) for extra in ({}, change))
    assert describe(one) != describe(other)


def test_group_accuracy_counts_each_group_by_itself():
    correct = np.asarray([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 1]], bool)
    groups = np.asarray([0, 0, 0, 3, 1, 1])
    expected = [[200 / 3, 50, np.nan, 0], [100 / 3, 100, np.nan, 100]]
    np.testing.assert_allclose(probe.group_accuracy(correct, groups), expected)
    assert probe.group_accuracy(correct, None) is None


def test_groups_weighted_by_size_give_the_whole(backbone):
    heads = train(backbone, colors(1, 33), protocol(epochs=2))
    test = colors(2, 70)
    groups = np.random.default_rng(0).integers(0, 4, 70)
    scores = probe.evaluate(heads, center_crops(backbone, test), test.labels, groups)
    assert 0 < scores["top1"].mean() < 100
    weights = np.bincount(groups) / 70
    np.testing.assert_allclose(scores["groups"] @ weights, scores["top1"], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "fresh", "epochs": 4},
        {"augment": "views", "views": 2, "epochs": 4},
        {"augment": "views", "views": 2, "epochs": 4, "solver": "lbfgs"},
        {"solver": "lbfgs", "epochs": 4},
    ],
)
@pytest.mark.slow
def test_probes_train_on_probabilities(backbone, changes):
    """Those of hard labels give the heads of hard labels; even ones, a head that knows nothing."""
    split = colors(1, 15)
    rows, chosen = rows_of(15), protocol(**changes)
    hard = train(backbone, split, chosen)

    def on(probabilities):
        soft = jnp.broadcast_to(probabilities, (3, *probabilities.shape))
        key, images = jax.random.key(0), jnp.asarray(split.images)
        return probe.train(key, backbone, images, soft, rows, CLASSES, chosen).heads

    sure = on(jax.nn.one_hot(split.labels, CLASSES))
    for ours, theirs in zip(jax.tree.leaves(sure), jax.tree.leaves(hard), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    even = on(jnp.full((15, CLASSES), 1 / CLASSES))
    assert jnp.std(even["kernel"]) < 0.5 * jnp.std(hard["kernel"])
