"""The page about extending: its examples are the extensions that tests run, and one program."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scale import make_backbone, make_task

from lgm_jax import devices, objectives, real
from lgm_jax.data.dataset import ArraySplit, Split

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
PROGRAM = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
SAVE = "\nnp.savez({path!r}, images=images, accuracy=accuracy, devices=mesh.size)\n"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's program has made, on one device."""
    made: dict[str, Any] = {}
    exec(compile(PROGRAM, "extending.md", "exec", dont_inherit=True), made)
    return made


@pytest.mark.parametrize("name", ["SquaredError", "Fourier", "Shift", "class_means", "count_stage"])
def test_the_page_shows_the_extensions_that_tests_run(name):
    source = (ROOT / "tests" / "extensions.py").read_text()
    (found,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == name]
    first = min(n.lineno for n in (*found.decorator_list, found)) - 1
    assert "\n".join(source.splitlines()[first : found.end_lineno]) in PROGRAM


def test_the_example_is_thirty_lines():
    example = PROGRAM[PROGRAM.index("import optax") :].splitlines()
    assert len([line for line in example if line]) <= 30


@pytest.mark.slow
def test_the_example_distils_images_that_train_a_probe(names):
    images = names["images"]
    assert images.shape == (3, 36, 36, 3)
    assert 0 <= images.min() < images.max() <= 1
    # Measured: 0.50, from 1.01; 94 %, of 33 by chance.
    assert float(names["metrics"]["loss"]) < 0.8
    assert names["accuracy"] > 80
    assert names["dataset"].counts()["test"].tolist() == [100, 100, 100]


@pytest.mark.slow
def test_the_example_makes_the_same_images_on_eight_devices(names, tmp_path):
    path = tmp_path / "made.npz"
    # Fewer at a time than a device's two views of an image.
    program = PROGRAM.replace("microbatch=4", "microbatch=1") + SAVE.format(path=str(path))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as made:
        assert made["devices"] == 8
        np.testing.assert_allclose(made["images"], names["images"], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_objective_of_the_page_honours_weights_and_no_order(names):
    objectives.try_objective(names["SquaredError"](), 3, 8)


@dataclasses.dataclass(frozen=True)
class ByImageAndCopy:
    """An objective that lays views out by image and copy, which identify them."""

    def __call__(self, key, synthetic, real):
        places = jnp.arange(synthetic.num_classes * synthetic.copies)
        own = (synthetic.image * synthetic.copies + synthetic.copy)[None, :] == places[:, None]
        rows = jnp.argmax(own * synthetic.weights[None, :], axis=1)
        return jnp.mean(jnp.abs(synthetic.values[rows]))


def test_the_check_of_an_objective_numbers_images_and_copies_as_a_run_does():
    objectives.try_objective(ByImageAndCopy(), 3, 8)


@pytest.mark.slow
def test_images_that_are_drawn_when_asked_for_are_as_good_as_arrays(names):
    drawn = names["train"].take(np.arange(10))
    assert isinstance(drawn, Split)
    arrays = ArraySplit(drawn.load(np.arange(10)), drawn.labels)
    task, key = make_task(3), jax.random.key(1)
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    found, expected = (
        real.streamed([make_backbone()], split, task, key, mesh=mesh)(4)[0]
        for split in (drawn, arrays)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
