"""Probes that learn from a teacher, against formulas written out in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import heads, probe, solvers, teachers
from lgm_jax.augment import Augmentation
from lgm_jax.backbones import Backbone
from lgm_jax.errors import UserError
from lgm_jax.identity import describe
from tests.marks import slow

N, D, E, K, SIDE = 6, 5, 4, 3, 4


def draw(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def a_head(seed, *runs, dim=D, classes=K):
    return {"kernel": draw(seed, *runs, dim, classes), "bias": draw(seed + 1, *runs, classes)}


def softmax(scores):
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def as_jax(*trees):
    return jax.tree.map(jnp.asarray, trees)


LABELS = np.arange(N, dtype=np.int32) % K
ONE_HOT = np.eye(K)[LABELS]
SOFT = np.random.default_rng(3).dirichlet(np.ones(K), N).astype(np.float32)
FEATURES, TAUGHT = draw(0, N, D), draw(1, N, E)


@pytest.mark.parametrize("labels", [LABELS, SOFT])
def test_distillation_is_a_divergence_and_a_cross_entropy(labels):
    """Half T² KL of tempered probabilities, half cross-entropy; a weight of zero leaves out."""
    head, scores = a_head(4), draw(6, N, K, scale=3)
    weights = np.asarray([1, 0, 2, 1, 0, 0.5], np.float32)
    own = FEATURES @ head["kernel"] + head["bias"]
    q, p = softmax(scores / 4), softmax(own / 4)
    divergences = np.sum(q * np.log(q / p), axis=-1)
    targets = ONE_HOT if labels is LABELS else SOFT
    errors = -np.sum(targets * np.log(softmax(own)), axis=-1)
    expected = np.average(0.5 * 16 * divergences + 0.5 * errors, weights=weights)
    given = as_jax(head, FEATURES, labels, scores, weights)
    assert teachers.distillation_loss(*given) == pytest.approx(expected, rel=1e-5)
    all_taught = teachers.distillation_loss(*given, temperature=2.0, share=1.0)
    q, p = softmax(scores / 2), softmax(own / 2)
    expected = np.average(4 * np.sum(q * np.log(q / p), axis=-1), weights=weights)
    assert all_taught == pytest.approx(expected, rel=1e-5)


def test_a_teacher_that_agrees_has_no_divergence():
    head, features, labels = as_jax(a_head(4), FEATURES, LABELS)
    given = (head, features, labels, heads.logits(head, features))
    assert abs(teachers.distillation_loss(*given, share=1.0)) < 1e-6
    with pytest.raises(UserError, match="temperature must be above 0"):
        teachers.distillation_loss(*given, temperature=0.0)


def test_a_projection_has_a_mean_squared_error():
    projection = a_head(8, classes=E)
    weights = np.asarray([1, 0, 2, 1, 0, 0.5], np.float32)
    errors = (FEATURES @ projection["kernel"] + projection["bias"] - TAUGHT) ** 2
    expected = np.average(errors.mean(axis=-1), weights=weights)
    given = as_jax(projection, FEATURES, TAUGHT)
    assert teachers.projection_loss(*given) == pytest.approx(errors.mean(), rel=1e-5)
    found = teachers.projection_loss(*given, jnp.asarray(weights))
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_inherited_head_is_the_teachers_behind_the_projection():
    projection, head = a_head(8, classes=E), a_head(10, dim=E)
    predicted = FEATURES @ projection["kernel"] + projection["bias"]
    expected = predicted @ head["kernel"] + head["bias"]
    projection, head, features = as_jax(projection, head, FEATURES)
    found = heads.logits(teachers.inherit(projection, head), features)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_projection_starts_as_a_layer_of_pytorch():
    """U(-1/√d, 1/√d), whose std is 1/√(3 d)."""
    start = teachers.init_projection(jax.random.key(0), 400, 300)
    assert start["kernel"].shape == (400, 300)
    assert start["bias"].shape == (300,)
    for leaf in start.values():
        assert np.abs(leaf).max() <= 1 / 20
        assert np.std(leaf) == pytest.approx(1 / np.sqrt(1200), rel=0.1)


def adam(gradient, params, rates):
    """Adam in float64, as in its paper."""
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    first, second = (dict.fromkeys(params, 0.0) for _ in range(2))
    for step, rate in enumerate(rates, 1):
        for name, slope in gradient(params).items():
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            params[name] = params[name] - rate * mean / (np.sqrt(square) + 1e-8)
    return params


def gradient_of(targets, teacher):
    """The gradient of all images' mean loss, by hand."""

    def back(residuals):
        return {"kernel": FEATURES.T @ residuals, "bias": residuals.sum(0)}

    def gradient(params):
        own = FEATURES @ params["kernel"] + params["bias"]
        if targets == "ci":
            return back(2 * (own - TAUGHT) / (N * E))
        scores = TAUGHT @ teacher["kernel"] + teacher["bias"]
        soft = 4 * (softmax(own / 4) - softmax(scores / 4))
        return back((0.5 * soft + 0.5 * (softmax(own) - ONE_HOT)) / N)

    return gradient


def protocol(targets, **changes):
    values = {"epochs": 12, "batch": 100, "runs": 2, "crop": SIDE, "augment": "none"}
    values |= {"augmentation": None, "learning_rate": 2.0, "decay": "epoch", "targets": targets}
    return probe.Protocol(**values | changes)


@pytest.mark.parametrize("targets", teachers.TAUGHT)
def test_each_run_learns_from_its_own_head_of_the_teacher(targets):
    """By Adam on the formula's gradient, with the teacher's head in front for `ci`."""
    lessons = a_head(12, 2, dim=E)

    def fit(rate):
        chosen = protocol(targets, learning_rate=rate)
        teacher = probe.Teacher(jnp.asarray(TAUGHT), lessons)
        key = jax.random.key(0)
        return probe.fit(key, FEATURES, LABELS, K, chosen, teacher=teacher)

    made, start = fit(2.0), fit(1e-12)
    rates = 2.0 * N / 256 * (1 + np.cos(np.pi * np.arange(12) / 12)) / 2
    for run in range(2):
        head = {name: leaf[run] for name, leaf in lessons.items()}
        if targets == "kd":
            params = {name: leaf[run] for name, leaf in start.heads.items()}
            expected = adam(gradient_of(targets, head), params, rates)
        else:
            key_heads = jax.random.split(jax.random.key(0))[0]
            key = jax.random.split(key_heads, 2)[run]
            params = teachers.init_projection(key, D, E)
            trained = adam(gradient_of(targets, head), params, rates)
            expected = {
                "kernel": trained["kernel"] @ head["kernel"],
                "bias": trained["bias"] @ head["kernel"] + head["bias"],
            }
        for name, leaf in expected.items():
            np.testing.assert_allclose(made.heads[name][run], leaf, rtol=1e-4, atol=1e-4)
    assert (made.losses[:, -1] < 0.9 * made.losses[:, 0]).all()


def backbone_of(kernel, name):
    def apply(params, images):
        return images.reshape(images.shape[0], -1) @ params

    return Backbone(name, apply, kernel, kernel.shape[1], SIDE, name)


def tables_of(augment, own, teacher):
    """The features that a solver is given: the probe's, and the teacher's."""
    given = []

    def keep(*arguments, teacher):
        given.extend([arguments[1], teacher.sees])
        return probe.Trained(teacher.heads, None)

    solver = solvers.Solver(keep, fresh=True, taught=True)
    changes = {"augment": augment, "augmentation": Augmentation(), "views": 3, "solver": solver}
    images = np.random.default_rng(0).integers(0, 255, (N, SIDE + 2, SIDE + 2, 3), np.uint8)
    rows, key = np.broadcast_to(np.arange(N), (2, N)), jax.random.key(0)
    heads = a_head(16, 1, dim=teacher.feature_dim)
    taught = probe.Teacher(teacher, heads)
    probe.train(key, own, images, LABELS, rows, K, protocol("ci", **changes), teacher=taught)
    return given


@pytest.mark.parametrize("augment", ["fresh", slow("views")])
def test_both_backbones_see_the_same_views(augment):
    """A teacher whose features are a linear map of the probe's has those of the same pixels."""
    kernel, mix = draw(14, SIDE * SIDE * 3, D), draw(15, D, E)
    own, other = backbone_of(kernel, "own"), backbone_of(kernel @ mix, "other")
    features, taught = tables_of(augment, own, other)
    if augment == "fresh":
        assert not np.allclose(features(0), features(1))
        features, taught = features(7), taught(7)
    assert taught.shape == (2, 3 if augment == "views" else 1, N, E)
    np.testing.assert_allclose(taught, features @ mix, rtol=1e-4, atol=1e-4)
    assert np.std(features, axis=0).mean() > 0.1, "runs have views of their own"


@pytest.mark.parametrize("augment", ["fresh", "views"])
def test_a_teacher_on_the_same_backbone_sees_once(augment):
    backbone = backbone_of(draw(14, SIDE * SIDE * 3, D), "own")
    features, taught = tables_of(augment, backbone, backbone)
    assert taught is features
    if augment == "fresh":
        assert features(3) is features(3)


def test_what_does_not_fit_is_refused():
    key, teacher = jax.random.key(0), probe.Teacher(TAUGHT, a_head(12, 1, dim=E))
    for targets, given, text in [
        ("kd", None, "targets=kd needs a teacher"),
        ("labels", teacher, "targets=labels takes no teacher"),
        ("ci", teacher._replace(sees=TAUGHT[:3]), "does not fit features"),
        ("ci", teacher._replace(heads=a_head(12, 1)), "does not fit features"),
    ]:
        with pytest.raises(UserError, match=text):
            probe.fit(key, FEATURES, LABELS, K, protocol(targets), teacher=given)
    with pytest.raises(UserError, match="targets=ci needs solver=adam, not lbfgs"):
        protocol("ci", solver="lbfgs")
    with pytest.raises(UserError, match="targets"):
        protocol("soft")


def test_what_a_probe_learns_is_part_of_its_identity():
    plain = protocol("labels")
    assert "targets" not in describe(plain)
    assert describe(dataclasses.replace(plain, targets="kd"))["targets"] == "kd"
