"""What is planned is what runs: of shapes, plans make the programs that runs make of arrays."""

from __future__ import annotations

import jax
import pytest

import launch
from lgm_jax import compilation, devices, distill, plan
from lgm_jax.execution import Execution
from lgm_jax.programs import Embedding, Programs

QUICK = ["--config=configs/quickstart.py:quick", "--config.stages=distill", "--config.steps=1"]


def config_of(*flags):
    config, *_ = launch.parse(["launch.py", *flags], writes=False)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"real.source": "stream", "labels": "soft", "microbatch": 3},
        {"real.source": "exact", "objective": "sfm", "images.kind": "pixels", "microbatch": 10},
    ],
)
@pytest.mark.slow
def test_what_is_planned_runs(changes, vit_folder, tmp_path, monkeypatch):
    """To the letter, without weights or data."""
    small = {"backbone.name": vit_folder, "images.resolution": 16, "images.crop": 16}
    flags = [*QUICK, *(f"--config.{key}={value}" for key, value in (small | changes).items())]
    ran, call = [], compilation.Program.__call__

    def spy(program, *values, **named):
        if isinstance(values[0], distill.State) and not ran:
            ran.append(program.lower(*values, **named).as_text())
        return call(program, *values, **named)

    monkeypatch.setattr(compilation.Program, "__call__", spy)
    assert launch.main(["launch.py", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    config = config_of(*flags)
    programs = plan.make_programs(config, jax.devices(), *plan.size_of_data(config))
    assert ran == [programs.lower(changes["microbatch"]).as_text()]
    # Of programs with options for XLA too, as those for CPUs have.
    parts = {part for part, *_ in programs.flops(changes["microbatch"])}
    assert {"synthetic forward", "backward", "objective"} <= parts
    assert "stablehlo.dot_general" in ran[0]


def test_what_lies_on_a_device_already_is_counted_once(monkeypatch):
    """Weights, and what the caller has placed; the step's account has both again."""
    config = config_of(*QUICK, "--config.real.source=cached")
    programs = plan.make_programs(config, jax.devices()[:1], *plan.size_of_data(config))
    weights = devices.bytes_here(programs.arguments()[1])
    assert weights > 0
    asked = []

    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 10**9, "bytes_in_use": weights + 1234 + 5}

    def fit(_, limit, needed):
        asked.append(limit)
        return 10

    monkeypatch.setattr(Programs, "device", Accelerator())
    monkeypatch.setattr(Programs, "fit", fit)
    assert programs.choose(placed=1234) == Execution(10, "products")
    assert asked == [900_000_000 - 5]


def test_streamed_images_have_a_size_of_their_own(monkeypatch):
    """On accelerators, what fits beside all that a step takes; on CPUs and where one is given,
    that of the step."""
    config = config_of(*QUICK, "--config.real.source=stream")
    programs = plan.make_programs(config, jax.devices()[:1], *plan.size_of_data(config))
    (embedding,) = programs.embeddings()
    assert (embedding.here, embedding.numbers) == (programs.recipe.task.num_views, 1)
    size = programs.choose().microbatch
    assert programs.choose() == Execution(size, "all", size)
    lies = devices.bytes_here(programs.arguments()) + programs.beside()
    asked = []

    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 10**9, "bytes_in_use": 0}

    def fit(_, limit, needed):
        asked.append(limit)
        return 15

    monkeypatch.setattr(Programs, "device", Accelerator())
    monkeypatch.setattr(Programs, "fit", lambda _, limit, needed: 10)
    monkeypatch.setattr(Embedding, "fit", fit)
    assert programs.choose() == Execution(10, "products", 15)
    weights = devices.bytes_here(programs.arguments()[1])
    assert asked == [900_000_000 + weights - lies + embedding.fixed()]
    assert programs.choose(5) == Execution(5, "products", 5)
