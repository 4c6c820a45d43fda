"""What devices exchange in a step, read off the program that XLA compiled for eight of them.

`test_sharding.py` runs this in a process of eight CPU devices. Nothing is computed.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scale import KEY, SIDE, apply, make_task

from lgm_jax import devices, distill, features, numerics, objectives
from lgm_jax.augment import Augmentation
from lgm_jax.hlo import Collective, read_collectives
from lgm_jax.images import Pixels
from tests.marks import slow

DEVICES, HIDDEN = 8, 16
# Of exact features. With 1,000 classes, class scores take several parts of 64 MiB.
REAL = 100_000
# Scalars, such as losses, total weights and largest numbers.
FEW = 16

PLAIN = {"parametrisation": Pixels(SIDE), "augmentation": None}

pytestmark = pytest.mark.usefixtures("compiled_anew")


def abstract(mesh: Mesh, spec: PartitionSpec, *shape: int, dtype: Any = jnp.float32) -> Any:
    parts = {devices.EVERYWHERE: 1, devices.IMAGES: mesh.shape["image"], devices.ROWS: mesh.size}
    if shape and shape[0] % parts[spec]:
        shape = (-(-shape[0] // parts[spec]) * parts[spec], *shape[1:])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def abstract_real(task: distill.Distillation, source: str, dim: int, mesh: Mesh) -> Any:
    """Real features as `real.streamed` and `real.cached`, or as `real.exact`, lay them out."""
    rows, spec, k = task.num_views, devices.ROWS, task.num_classes
    if source == "exact":
        rows = numerics.padded_rows(REAL, k, mesh.size)
        if hasattr(task.objective, "prepare"):
            rows, spec = k, devices.EVERYWHERE
    values, weights = abstract(mesh, spec, rows, dim), abstract(mesh, spec, rows)
    numbers = abstract(mesh, spec, rows, dtype=jnp.int32)
    return objectives.Features(values, numbers, weights, numbers, numbers, k)


def compile_step(task: distill.Distillation, source: str, dim: int) -> tuple[Mesh, str]:
    """A step in microbatches, on eight devices."""
    mesh = devices.make_mesh(task.num_images, task.copies, jax.devices()[:DEVICES])
    step = distill.make_step(task, [apply], KEY, mesh=mesh, microbatch=7)

    def lay_out(leaf: Any) -> Any:
        of_images = leaf.ndim and leaf.shape[0] == task.num_images
        spec = devices.IMAGES if of_images else devices.EVERYWHERE
        return abstract(mesh, spec, *leaf.shape, dtype=leaf.dtype)

    state = jax.tree.map(lay_out, jax.eval_shape(lambda: distill.init_state(task, KEY)))
    shapes = (SIDE**2 * 3, HIDDEN), (HIDDEN, dim)
    params = tuple(abstract(mesh, devices.EVERYWHERE, *shape) for shape in shapes)
    real = abstract_real(task, source, dim, mesh)
    return mesh, step.jitted.lower(state, [params], [real]).compile().as_text()


def exchanged(task: distill.Distillation, source: str, dim: int) -> tuple[int, dict[str, float]]:
    """Places for views on all devices, and numbers by kind, but for sums of image gradients.

    These are seen to be made once, where copies of an image are on several devices. Nothing is
    scattered.
    """
    mesh, text = compile_step(task, source, dim)
    assert "scatter" not in text
    found = read_collectives(text, DEVICES)
    here = {axis: -(-n // mesh.shape[axis]) for axis, n in sizes(task).items()}
    leaves = jax.eval_shape(lambda: distill.init_state(task, KEY)).params["images"]
    numbers = sum(here["image"] * math.prod(leaf.shape[1:]) for leaf in leaves)
    if mesh.shape["copy"] > 1:
        found.remove(Collective("all-reduce", numbers, 4 * numbers, mesh.shape["copy"], 1))
    sent: dict[str, float] = {}
    for each in found:
        sent[each.kind] = sent.get(each.kind, 0) + each.numbers * each.times
    return math.prod(here.values()) * DEVICES, sent


def sizes(task: distill.Distillation) -> dict[str, int]:
    return {"image": task.num_images, "copy": task.copies}


# Images, copies, features.
SHAPES = [
    (10, 10, 384),
    slow(100, 10, 64),
    slow(1000, 3, 64),
]


@pytest.mark.parametrize("source", ["drawn", slow("exact")])
@pytest.mark.parametrize(("classes", "copies", "dim"), SHAPES)
def test_gradient_matching_exchanges_two_head_gradients(classes, copies, dim, source):
    task = make_task(classes, copies=copies, **PLAIN)
    _, sent = exchanged(task, source, dim)
    # And the total weights.
    assert sent == {"all-reduce": 2 * classes * (dim + 1) + 2}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["drawn", "exact"])
@pytest.mark.parametrize(("classes", "copies", "dim"), SHAPES)
def test_flow_matching_exchanges_class_means(classes, copies, dim, source):
    task = make_task(classes, copies=copies, objective=objectives.SFM(), **PLAIN)
    _, sent = exchanged(task, source, dim)
    # Class sums and the sum of all; those of real images are prepared where all are known.
    sets = 1 if source == "exact" else 2
    assert sent == {"all-reduce": sets * (classes + 1) * (dim + 1)}


@pytest.mark.parametrize("source", ["drawn", slow("exact")])
@pytest.mark.parametrize("head_per_copy", [False, slow(True)])
@pytest.mark.parametrize(("classes", "copies", "dim"), SHAPES)
def test_a_closed_form_probe_exchanges_views_or_products_of_features(
    classes, copies, dim, head_per_copy, source
):
    """Whatever the number of real rows: of these, a gradient of each head."""
    objective = objectives.CLP(head_per_copy=head_per_copy)
    task = make_task(classes, copies=copies, objective=objective, **PLAIN)
    places, sent = exchanged(task, source, dim)
    heads = copies if head_per_copy else 1
    if head_per_copy or places <= dim:
        # Features, labels, weights, copies.
        assert places * dim <= sent.pop("all-gather") <= places * (dim + 3)
        limit = heads * (classes * dim + 1) + FEW
    else:
        limit = dim**2 + 2 * classes * dim + 2 * dim + classes + FEW
    assert sent.pop("all-reduce") <= limit
    assert not sent
    # Less than features of all views and their gradients, some times over.
    assert places * (dim + 3) + limit <= 8 * task.num_views * dim + dim**2 + 2 * classes * dim


@pytest.mark.slow
def test_a_pyramid_of_augmented_views_exchanges_nothing_more():
    task = make_task(10, copies=10, labels="soft", center_crop_copies=1)
    mesh, text = compile_step(task, "drawn", 64)
    assert "scatter" not in text
    levels = sum(3 * side**2 * 3 for side in (1, 2, SIDE))
    of_images, of_labels = levels, 3 * 10
    sent = [each.numbers * each.times for each in read_collectives(text, DEVICES)]
    assert dict(mesh.shape) == {"image": 4, "copy": 2}
    assert sum(sent) == 2 * 10 * (64 + 1) + 2 + of_images + of_labels


def test_real_images_are_embedded_without_an_exchange():
    mesh = devices.make_mesh(10, 10, jax.devices()[:DEVICES])
    images = abstract(mesh, devices.ROWS, 100, SIDE, SIDE, 3)
    places = abstract(mesh, devices.ROWS, 100, 1, dtype=jnp.int32)
    shapes = (SIDE**2 * 3, HIDDEN), (HIDDEN, 64)
    params = tuple(abstract(mesh, devices.EVERYWHERE, *shape) for shape in shapes)
    options = {
        "apply": apply,
        "crop": SIDE,
        "augmentation": Augmentation(),
        "mesh": mesh,
        "size": 7,
    }
    lowered = features.embed_views.jitted.lower(params, images, KEY, places, **options)
    assert read_collectives(lowered.compile().as_text(), DEVICES) == []


def test_ten_images_in_ten_copies_leave_a_sixth_of_eight_devices_empty():
    mesh = devices.make_mesh(10, 10, jax.devices()[:8])
    assert dict(mesh.shape) == {"image": 4, "copy": 2}


@pytest.mark.parametrize("count", range(1, DEVICES + 1))
def test_the_mesh_leaves_the_fewest_places_empty(count):
    def places(split: tuple[int, int], images: int, copies: int) -> int:
        return math.prod(n * -(-each // n) for n, each in zip(split, (images, copies), strict=True))

    splits = [(count // n, n) for n in range(1, count + 1) if count % n == 0]
    for images, copies in itertools.product((1, 2, 3, 5, 7, 10, 16, 100, 1000), (1, 2, 3, 7, 10)):
        mesh = devices.make_mesh(images, copies, jax.devices()[:count])
        chosen = mesh.shape["image"], mesh.shape["copy"]
        wanted = min(places(split, images, copies) for split in splits)
        assert places(chosen, images, copies) == wanted
        # Of equal ones, that which has the fewest devices share an image.
        assert all(
            places(split, images, copies) > wanted for split in splits if split[0] > chosen[0]
        )
