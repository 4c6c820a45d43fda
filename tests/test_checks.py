"""Options that are no option: refused where they are set, in a notebook as on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax import (
    backbones,
    checks,
    data,
    distill,
    images,
    objectives,
    plan,
    plugins,
    probe,
    settings,
)
from lgm_jax.augment import PRESETS, Augmentation, random_box
from lgm_jax.data.sampling import Order
from lgm_jax.errors import UserError
from lgm_jax.features import Views

TASK = distill.Distillation(num_classes=3, parametrisation=images.Pyramid(8), crop=8)
PYRAMID, PIXELS = TASK.parametrisation, images.Pixels(8)
UPDATES, REAL = settings.Updates(), settings.RealViews()
PROTOCOL = probe.Protocol(
    epochs=1, batch=4, runs=1, crop=8, augment="views", augmentation=Augmentation()
)
KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": lambda keys, images, resolution: images},
        {"objective": type("Bare", (), {"__call__": lambda self, key, synthetic, real: 0.0})()},
    ],
)
def test_what_a_run_cannot_be_known_by_is_refused_in_a_line(changes):
    recipe = settings.Recipe(dataclasses.replace(TASK, **changes), UPDATES, REAL)
    with pytest.raises(UserError, match=r"has no description, .* a frozen dataclass") as error:
        settings.identity_of(recipe, 0, ["a"], [1.0], "b", "center", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "name", "typo", "meant"),
    [
        (UPDATES, "schedule", "cosin", "cosine"),
        (PYRAMID, "init", "nosie", "noise"),
        (PIXELS, "init", "rael", "real"),
        (TASK, "labels", "sfot", "soft"),
        (REAL, "sampling", "shufle", "shuffle"),
        (PROTOCOL, "solver", "lbgfs", "lbfgs"),
        (PROTOCOL, "augment", "view", "views"),
        (Augmentation(), "crops", "insid", "inside"),
    ],
)
def test_a_typo_in_a_value_is_refused_with_the_value_that_was_meant(options, name, typo, meant):
    with pytest.raises(UserError, match=rf"unknown {name} '{typo}'.*{meant}") as error:
        dataclasses.replace(options, **{name: typo})
    assert "\n" not in str(error.value)
    assert f"did you mean {meant}" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "known", "typo", "meant"),
    [
        ("objective", objectives.OBJECTIVES, "lmg", "lgm"),
        ("objective", objectives.OBJECTIVES, "LGM", "lgm"),
        ("parametrisation", images.PARAMETRISATIONS, "pixel", "pixels"),
        ("augmentation", PRESETS, "papr", "paper"),
    ],
)
def test_a_typo_in_a_name_is_refused_with_the_name_that_was_meant(kind, known, typo, meant):
    with pytest.raises(UserError, match=rf"unknown {kind} '{typo}'.*{meant}") as error:
        plugins.make(kind, typo, known, {})
    assert "\n" not in str(error.value)
    if typo != typo.upper():
        assert f"did you mean {meant}" in str(error.value)


def test_a_typo_in_a_source_is_refused_with_the_one_that_was_meant():
    with pytest.raises(UserError, match=r"unknown real 'steam'.*did you mean stream"):
        settings.RealViews(source="steam")


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (TASK, {"num_classes": (0, 1), "ipc": (0, -1), "copies": (0, -3)}),
        (TASK, {"crop": (0, 9, -8), "center_crop_copies": (-1, 11)}),
        (PYRAMID, {"resolution": (0,), "grow_every": (-1,), "grow_delay": (-1,)}),
        (PYRAMID, {"start_resolution": (0, -4)}),
        (PIXELS, {"resolution": (0, -1)}),
        (UPDATES, {"learning_rate": (0.0, -1.0, NAN, INF), "labels_learning_rate": (0.0, NAN)}),
        (UPDATES, {"steps": (-1,)}),
        (REAL, {"views": (0,)}),
        (objectives.LGM(), {"head_std": (-0.1, NAN, INF)}),
        (objectives.CLP(), {"ridge": (0.0, -1.0, NAN), "temperature": (-1.0, 0.0)}),
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
    with pytest.raises(UserError, match="steps"):
        settings.Updates(schedule="cosine", steps=0)
    with pytest.raises(UserError, match="unknown init 'real'"):
        images.Pyramid(8, init="real")
    with pytest.raises(UserError, match="center_crop_copies"):
        dataclasses.replace(TASK, copies=2, center_crop_copies=3)
    with pytest.raises(UserError, match="lbfgs"):
        dataclasses.replace(PROTOCOL, solver="lbfgs", augment="fresh")


@pytest.mark.parametrize(
    ("field", "value"), [("objective", objectives.LGM), ("augmentation", Augmentation)]
)
def test_a_class_in_place_of_a_thing_is_refused(field, value):
    with pytest.raises(UserError, match=rf"{field} must be an object such as .*\(\), not <class"):
        dataclasses.replace(TASK, **{field: value})


def test_names_in_place_of_things_are_refused_where_no_type_is_checked():
    code = """
from lgm_jax import distill, images
from lgm_jax.errors import UserError
plain = {"num_classes": 2, "parametrisation": images.Pixels(8), "crop": 8}
for given in ({"objective": "lgm"}, {"parametrisation": images.Pyramid}, {"augmentation": "paper"}):
    try:
        distill.Distillation(**plain | given)
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [line.split(" such as")[0] for line in done.stdout.splitlines()] == [
        f"{name} must be an object" for name in ("objective", "parametrisation", "augmentation")
    ]


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
    least = {"num_classes": 2, "ipc": 1, "copies": 1, "center_crop_copies": 1, "crop": 1}
    dataclasses.replace(TASK, **least, augmentation=None)
    images.Pyramid(1, grow_every=0, start_resolution=1024)
    images.Pixels(1, init="real")
    objectives.LGM(head_std=0.0)
    objectives.CLP(ridge=1e-9)
    settings.Updates(1e-9, "cosine", 1)
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
