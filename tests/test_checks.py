"""Options that are no option: refused where they are set, in a notebook as on the command line."""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import backbones, checks, data, distill, images, plan, probe
from lgm_jax.augment import Augmentation, random_box
from lgm_jax.data.sampling import Order, step_indices
from lgm_jax.errors import UserError
from lgm_jax.features import Views

RECIPE = distill.Recipe(num_classes=3, resolution=8, crop=8)
PROTOCOL = probe.Protocol(
    epochs=1, batch=4, runs=1, crop=8, augment="views", augmentation=Augmentation()
)
KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("options", "name", "typo", "meant"),
    [
        (RECIPE, "schedule", "cosin", "cosine"),
        (RECIPE, "kind", "pixel", "pixels"),
        (RECIPE, "init", "nosie", "noise"),
        (RECIPE, "label_kind", "sfot", "soft"),
        (RECIPE, "objective", "lmg", "lgm"),
        (RECIPE, "objective", "LGM", "lgm"),
        (RECIPE, "real", "steam", "stream"),
        (RECIPE, "sampling", "shufle", "shuffle"),
        (PROTOCOL, "solver", "lbgfs", "lbfgs"),
        (PROTOCOL, "augment", "view", "views"),
        (Augmentation(), "crops", "insid", "inside"),
    ],
)
def test_a_typo_in_a_value_is_refused_with_the_value_that_was_meant(options, name, typo, meant):
    with pytest.raises(UserError, match=rf"unknown {name} '{typo}'.*{meant}") as error:
        dataclasses.replace(options, **{name: typo})
    assert "\n" not in str(error.value)
    if typo != typo.upper():
        assert f"did you mean {meant}" in str(error.value)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (RECIPE, {"num_classes": (0, 1), "ipc": (0, -1), "copies": (0, -3)}),
        (RECIPE, {"resolution": (0,), "crop": (0, 9, -8), "real_views": (0,)}),
        (RECIPE, {"learning_rate": (0.0, -1.0, NAN, INF), "labels_learning_rate": (0.0, NAN)}),
        (RECIPE, {"head_std": (-0.1, NAN, INF), "ridge": (0.0, -1.0, NAN), "temperature": (-1.0,)}),
        (RECIPE, {"grow_every": (-1,), "grow_delay": (-1,), "start_resolution": (0, -4)}),
        (RECIPE, {"center_crop_copies": (-1, 11), "steps": (-1,)}),
        (PROTOCOL, {"epochs": (0,), "batch": (0, -1), "runs": (0,), "views": (0,), "crop": (0,)}),
        (PROTOCOL, {"learning_rate": (0.0, NAN), "ridge": (-1.0, NAN)}),
        (Augmentation(), {"flip": (-0.1, 1.1, NAN), "noise": (2.0, NAN), "noise_std": (-1.0, INF)}),
        (Augmentation(), {"scale": ((0.0, 1.0), (0.5, 0.4), (0.1, 1.5), (NAN, 1.0), (0.1, NAN))}),
        (Augmentation(), {"ratio": ((0.0, 1.0), (2.0, 1.0), (1.0, INF)), "noise_mean": (NAN, INF)}),
        (Views(8, Augmentation()), {"crop": (0,), "count": (0, -1)}),
        (Views(8), {"count": (2,)}),
        (plan.Machine(), {"devices": (0,), "memory": (0.0, NAN), "tflops": (-1.0, 0.0)}),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "-".join(value),
)
def test_a_value_out_of_range_is_refused_by_name(options, values):
    for name, wrong in values.items():
        for value in wrong:
            with pytest.raises(UserError, match=name):
                dataclasses.replace(options, **{name: value})


def test_values_that_contradict_each_other_are_refused():
    for changes in (
        {"schedule": "cosine", "steps": 0},
        {"init": "real"},
        {"copies": 2, "center_crop_copies": 3},
    ):
        with pytest.raises(UserError):
            dataclasses.replace(RECIPE, **changes)
    with pytest.raises(UserError, match="lbfgs"):
        dataclasses.replace(PROTOCOL, solver="lbfgs", augment="fresh")


@pytest.mark.parametrize("value", [None, "3", True, 2.5, NAN, [3], 3j])
def test_what_is_no_whole_number_is_refused_as_one(value):
    with pytest.raises(UserError, match="copies must be a whole number of at least 1, not"):
        checks.in_range("copies", value, 1, whole=True)


@pytest.mark.parametrize("value", [None, "3", True, [3], 3j])
def test_what_is_no_number_is_refused_as_one(value):
    with pytest.raises(UserError, match="rate must be above 0, not"):
        checks.positive("rate", value)
    with pytest.raises(UserError, match="flip must be a number from 0 to 1, not"):
        checks.in_range("flip", value, 0, 1)
    if not isinstance(value, bool):
        with pytest.raises(UserError, match="grey must be True or False, not"):
            checks.flags(argparse.Namespace(grey=value), "grey")
    with pytest.raises(UserError, match="scale must be a tuple of two numbers"):
        checks.interval("scale", value, 1)
    with pytest.raises(UserError, match="one of: a, b"):
        checks.one_of("kind", value, ("a", "b"))


def test_numbers_of_numpy_and_jax_are_numbers():
    checks.in_range("copies", np.int64(3), 1, whole=True)
    checks.in_range("flip", np.float32(0.5), 0, 1)
    checks.positive("ridge", jnp.float32(0.1))
    jax.jit(lambda ridge: checks.positive("ridge", ridge))(0.0)


def test_the_limits_themselves_are_options():
    for changes in (
        {"num_classes": 2, "ipc": 1, "copies": 1, "center_crop_copies": 1, "head_std": 0.0},
        {"grow_every": 0, "start_resolution": 1024, "augmentation": None, "ridge": 1e-9},
        {"schedule": "cosine", "steps": 1, "crop": 1, "learning_rate": 1e-9},
        {"init": "real", "kind": "pixels", "copies": 3},
    ):
        dataclasses.replace(RECIPE, **changes)
    Augmentation(1.0, (1.0, 1.0), (0.1, 0.1), 0.0, -1.0, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"on_bad_image": "skp"},
        {"val_fraction": -0.1},
        {"val_fraction": 2.0},
        {"val_fraction": NAN},
        {"seed": -1},
        {"resolution": 0},
    ],
)
def test_a_data_set_is_refused_by_the_name_of_the_value_that_is_wrong(options):
    with pytest.raises(UserError, match=next(iter(options))):
        data.load_dataset("digits", **{"resolution": 32, **options})


def test_an_interval_begins_above_zero():
    with pytest.raises(UserError, match=r"scale must be above 0, not 0\.0"):
        Augmentation(scale=(0.0, 1.0))


def test_functions_refuse_the_same():
    with pytest.raises(UserError, match=r"unknown kind 'pixel'.*pixels"):
        images.level_sizes(8, "pixel")
    with pytest.raises(UserError, match=r"unknown init 'nosie'.*noise"):
        images.init_pyramid(KEY, 1, 8, init="nosie")
    levels = images.init_pyramid(KEY, 1, 8)
    with pytest.raises(UserError, match=r"unknown init 'zeros'.*zero"):
        images.grow_pyramid(levels, KEY, 1, "zeros")
    labels = np.zeros(4, np.int32)
    with pytest.raises(UserError, match=r"unknown sampling 'balance'.*balanced"):
        step_indices("balance", KEY, 0, 2, jnp.asarray(labels), 1)
    with pytest.raises(UserError, match=r"unknown sampling 'balance'.*balanced"):
        Order("balance", KEY, labels, 1)
    with pytest.raises(UserError, match="unknown crops 'out'"):
        random_box(KEY, (0.1, 1.0), (1.0, 1.0), crops="out")
    for option, typo in (
        ("normalization", "nativ"),
        ("dtype", "float31"),
        ("params_dtype", "float31"),
        ("attention", "cudn"),
        ("pooling", "clz"),
    ):
        with pytest.raises(UserError, match=typo):
            backbones.load("digits_contrastive", **{option: typo})
