"""Which way to execute a step is taken: the fastest of those that fit."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import launch
from lgm_jax import accelerators, plan
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
    fitting = {"all": everything, "products": products}
    assert choose(fitting.__getitem__, list(fitting), 100, platform) == expected


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("size", [30, 100])
def test_a_backbone_without_a_choice_keeps_everything(platform, size):
    assert choose(lambda _: size, ["all"], 100, platform) == Execution(size, "all")


def test_what_does_not_matter_is_not_computed():
    """On accelerators a size is found by compiling."""
    asked = []

    def fitting(residuals):
        return asked.append(residuals) or 100

    choose(fitting, ["all", "products"], 100, "tpu")
    assert asked == ["products"]


def test_an_execution_is_said_in_words():
    assert str(Execution(40)) == "40 views at a time"
    assert str(Execution(40, "products")) == "40 views at a time, products with weights kept"
    assert str(Execution(40, real_microbatch=40)) == "40 views at a time"
    assert str(Execution(40, "all", 50)) == "40 views at a time, 50 real images at a time"


@pytest.mark.slow
def test_the_order_of_accelerators_is_that_of_estimated_times():
    """Operations of the traced step at the device's peak, and what is kept written and read once:
    of DINOv2 ViT-B/14, with attention by XLA, of which products alone repeat the most."""
    config, *_ = launch.parse(
        ["launch.py", "--config=configs/dinov2_in100.py:cached", "--config.copies=1"], writes=False
    )
    programs = plan.make_programs(config, jax.devices()[:1], 100, 128_116)
    views, parts = 100, 50
    ways = [(residuals, size) for residuals in ("all", "products") for size in (views, parts)]
    some = {each: dataclasses.replace(programs, residuals=each) for each in ("all", "products")}
    counted = {way: some[way[0]].flops(way[1]) for way in ways}
    kept = {each: 2 * views * some[each].view_bytes() for each in some}
    repeated = sum(counted["products", views].values()) / sum(counted["all", views].values())
    # Counted: 1.013; and 57 of 150 MB a view.
    assert 1.005 < repeated < 1.02
    assert kept["products"] < 0.4 * kept["all"]
    for accelerator in accelerators.ACCELERATORS.values():
        seconds = {
            way: kept[way[0]] / (1e9 * accelerator.bandwidth)
            + sum(
                operations / accelerator.peak(dtype, exact)
                for (_, dtype, exact), operations in counted[way].items()
            )
            for way in ways
        }
        # What fits with everything kept, and with products alone, which take less.
        for sizes in ((views, views), (parts, views), (parts, parts)):
            fits = dict(zip(("all", "products"), sizes, strict=True))
            fastest = min(fits.items(), key=seconds.__getitem__)
            chosen = choose(fits.__getitem__, list(fits), views, accelerator.platform)
            assert (chosen.residuals, chosen.microbatch) == fastest
