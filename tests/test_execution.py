"""Which way to execute a step is taken: the fastest of those that fit."""

from __future__ import annotations

import pytest

from lgm_jax.execution import Execution, choose

CASES = {
    # All fit either way: a CPU keeps everything, whose bits are those of earlier runs.
    ("cpu", 100, 100): Execution(100, "all"),
    ("tpu", 100, 100): Execution(100, "products"),
    ("gpu", 100, 100): Execution(100, "products"),
    # Products alone fit, and save the second forward pass.
    ("cpu", 40, 100): Execution(100, "products"),
    ("gpu", 40, 100): Execution(100, "products"),
    # Nothing fits.
    ("cpu", 20, 50): Execution(20, "all"),
    ("tpu", 20, 50): Execution(50, "products"),
}


@pytest.mark.parametrize(("case", "expected"), CASES.items())
def test_the_fastest_way_that_fits_is_taken(case, expected):
    platform, everything, products = case
    fitting = {"all": lambda: everything, "products": lambda: products}
    assert choose(fitting, 100, platform) == expected


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [30, 100])
def test_a_backbone_without_a_choice_keeps_everything(platform, size):
    assert choose({"all": lambda: size}, 100, platform) == Execution(size, "all")


def test_what_does_not_matter_is_not_computed():
    """On accelerators a size is found by compiling."""
    asked = []

    def fitting(residuals):
        return lambda: asked.append(residuals) or 100

    choose({"all": fitting("all"), "products": fitting("products")}, 100, "tpu")
    assert asked == ["products"]


def test_an_execution_is_said_in_words():
    assert str(Execution(40)) == "40 views at a time"
    assert str(Execution(40, "products")) == "40 views at a time, products with weights kept"
    assert str(Execution(40, real_microbatch=40)) == "40 views at a time"
    assert str(Execution(40, "all", 50)) == "40 views at a time, 50 real images at a time"
