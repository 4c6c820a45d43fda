"""A distillation that has to stop says what was not finite, and blames nothing else."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import launch
from lgm_jax import backbones, devices, diagnosis, distill, real, settings
from tests.distilling import KEY, TASK
from tests.marks import slow

QUICK = "--config=configs/quickstart.py:quick"


def spoil(value):
    return jax.tree.map(lambda leaf: leaf * jnp.nan, value)


def broken_weights(monkeypatch):
    load = backbones.load

    def load_broken(*arguments, **options):
        found = load(*arguments, **options)
        return dataclasses.replace(found, params=spoil(found.params))

    monkeypatch.setattr(backbones, "load", load_broken)


def broken_real_features(monkeypatch):
    make = real.streamed

    def make_broken(*arguments, **options):
        stream = make(*arguments, **options)

        def broken(step):
            found = stream(step)
            return found if step < 3 else [spoil_values(each) for each in found]

        return broken

    monkeypatch.setattr(real, "streamed", make_broken)


def spoil_values(features):
    return dataclasses.replace(features, values=spoil(features.values))


def broken_views(monkeypatch):
    make = distill.make_embed

    def make_broken(*arguments, **options):
        embed = make(*arguments, **options)

        def broken(params, backbone_params, step):
            features = embed(params, backbone_params, step)
            # Not in place of them: the gradient is to be sound until then.
            values = features.values + jnp.where(step >= 3, jnp.nan, 0)
            return dataclasses.replace(features, values=values)

        return broken

    monkeypatch.setattr(distill, "make_embed", make_broken)


def broken_gradient(monkeypatch):
    make = distill.make_loss

    def make_broken(*arguments, **options):
        loss = make(*arguments, **options)

        def broken(params, step, backbone_params, real):
            def root_of_zero(params):
                return jnp.sqrt(0 * sum(map(jnp.sum, jax.tree.leaves(params))))

            nothing = jax.lax.cond(step >= 3, root_of_zero, lambda params: 0.0, params)
            return loss(params, step, backbone_params, real) + nothing

        return broken

    monkeypatch.setattr(distill, "make_loss", make_broken)


def far_too_high_rate(monkeypatch):
    monkeypatch.setattr(distill, "optimizer_of", lambda task, name: distill.optax.adam(3e38))


@pytest.mark.parametrize(
    ("break_it", "cause"),
    [
        slow(broken_weights, r"the loss is nan at step 1: weights of digits_contrastive are not"),
        slow(
            broken_real_features,
            r"the loss is nan at step 4: features of real images by digits_con",
        ),
        (
            broken_views,
            r"the loss is nan at step 4: features of the distilled images by",
        ),
        slow(
            broken_gradient,
            r"no longer finite after step 4: the gradient with respect to the",
        ),
        slow(far_too_high_rate, r"parameters have grown .*: config.learning_rate=0.03 is too high"),
    ],
)
def test_the_message_names_what_was_not_finite(break_it, cause, tmp_path, capsys, monkeypatch):
    break_it(monkeypatch)
    # A pyramid that grows at every step would have its numbers made smaller, and Adam anew.
    arguments = (QUICK, "--config.stages=distill", "--config.images.grow_every=0")
    assert launch.main(["launch.py", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line)
    assert re.search(cause, line), line
    assert ("learning_rate" in line) == (break_it is far_too_high_rate)
    assert not (tmp_path / "run" / "distilled").exists()


def _spoilt(part):
    """A step with a part that is not finite: backbones, real features and the state."""
    params, features, state = jnp.ones(3), jnp.ones((2, 3)), distill.init(TASK, KEY)
    if part == "weights":
        params = spoil(params)
    elif part == "real features":
        features = spoil(features)
    elif part == "gradient":
        state = state._replace(params=spoil(state.params), opt_state=spoil(state.opt_state))
    elif part == "images":
        state = state._replace(params=spoil(state.params))
    elif part == "large images":
        state = state._replace(params=jax.tree.map(lambda leaf: leaf + 2e3, state.params))

    def apply(params, images):
        broken = jnp.nan if part in ("views", "large images") else 0.0
        return jnp.broadcast_to(params + broken, (len(images), 3))

    return backbones.Backbone("toy", apply, params, 3, 8, "toy"), features, state


@pytest.mark.parametrize(
    ("part", "cause", "blamed"),
    [
        ("weights", "weights of toy are not finite: load a sound file of them", False),
        ("real features", "features of real images by toy are not finite, though", False),
        ("gradient", "the gradient with respect to the images is not finite, though", False),
        ("images", "the images' parameters have grown beyond what float32 holds", True),
        ("views", "features of the distilled images by toy are not finite, though", False),
        ("large images", "by toy are not finite, and the images' parameters have grown to", True),
        ("nothing", "config.objective=lgm overflows on them, or a device made an error", False),
    ],
)
def test_the_cause_is_the_first_part_of_a_step_that_is_not_finite(part, cause, blamed):
    backbone, features, state = _spoilt(part)
    recipe = settings.Recipe(TASK, settings.Updates(learning_rate=0.25), settings.RealViews())
    mesh = devices.make_mesh(TASK.num_images, TASK.copies)
    found = diagnosis.find_cause(
        recipe, KEY, [backbone], [features], 1, state, mesh=mesh, microbatch=None
    )
    assert cause in found
    assert ("config.learning_rate=0.25 is too high" in found) == blamed


@pytest.mark.slow
def test_the_cause_is_sought_with_what_the_run_has_on_the_device(tmp_path, capsys, monkeypatch):
    broken_views(monkeypatch)
    arguments = (QUICK, "--config.stages=distill", "--config.real.source=exact")
    assert launch.main(["launch.py", *arguments, f"--workdir={tmp_path / 'run'}"]) == 2
    out, line = capsys.readouterr()
    assert "features of the distilled images by digits_contrastive are not finite" in line
    assert out.count("real features: ") == 1


@pytest.mark.slow
def test_features_to_keep_are_refused_where_they_are_not_finite(tmp_path, capsys, monkeypatch):
    broken_weights(monkeypatch)
    arguments = (QUICK, "--config.real.source=exact", f"--workdir={tmp_path / 'run'}")
    assert launch.main(["launch.py", *arguments]) == 2
    line = capsys.readouterr().err
    assert re.search(r"features of \d+ of \d+ images by digits_contrastive are not finite", line)
