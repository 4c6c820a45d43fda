"""Laws of the image parametrisations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lgm_jax import images
from lgm_jax.errors import UserError

KEY = jax.random.key(0)

# Compiled as a whole: drawing a pyramid operation by operation takes seconds.
init_pyramid = jax.jit(
    images.init_pyramid, static_argnums=(1, 2), static_argnames=("kind", "init", "active")
)
grow_pyramid = jax.jit(images.grow_pyramid, static_argnames="init")


@pytest.mark.parametrize(
    ("resolution", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (32, (1, 2, 4, 8, 16, 32)),
        (224, (1, 2, 4, 8, 16, 32, 64, 128, 224)),
        (256, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
        (257, (1, 2, 4, 8, 16, 32, 64, 128, 256, 257)),
    ],
)
def test_level_sizes_are_the_powers_of_two_below_the_resolution_and_it(resolution, sizes):
    assert images.level_sizes(resolution) == sizes
    assert images.level_sizes(resolution, "pixels") == (resolution,)


def test_the_papers_pyramid_grows_every_200_steps_to_nine_levels():
    sizes = images.level_sizes(256)
    active = [images.num_active(step, sizes, 1, 200) for step in range(2000)]
    assert active == [min(1 + step // 200, 9) for step in range(2000)]
    assert active[1599:1601] == [8, 9]


def test_the_authors_pyramid_grows_one_step_later():
    sizes = images.level_sizes(256)
    active = [images.num_active(step, sizes, 1, 200, 1) for step in range(2000)]
    grown = [step for step in range(1, 2000) if active[step] > active[step - 1]]
    assert grown == list(range(201, 1602, 200))
    assert (active[0], active[-1]) == (1, 9)


@pytest.mark.parametrize(
    ("start", "grow_every", "delay"),
    [(1, 3, 0), (4, 3, 1), (5, 7, 9), (0, 2, 0), (99, 5, 0), (1, 0, 1)],
)
def test_traced_and_python_schedules_agree(start, grow_every, delay):
    sizes, schedule = images.level_sizes(20), (start, grow_every, delay)
    traced = jax.jit(lambda step: jnp.asarray(images.num_active(step, sizes, *schedule)))
    for step in range(40):
        expected = images.num_active(step, sizes, *schedule)
        assert isinstance(expected, int)
        assert traced(jnp.int32(step)) == expected


def test_levels_up_to_the_start_resolution_count_from_the_start():
    sizes = images.level_sizes(20)  # 1, 2, 4, 8, 16, 20
    assert images.num_active(0, sizes, 4, 10) == 3
    assert images.num_active(0, sizes, 7, 10) == 3
    assert images.num_active(0, sizes, 0, 10) == 1
    assert images.num_active(0, sizes, 1, 0) == 6


def _grown(num_images: int, resolution: int, active: int) -> images.Levels:
    levels = init_pyramid(KEY, num_images, resolution)
    for count in range(1, active):
        levels = grow_pyramid(levels, jax.random.fold_in(KEY, count), count)
    return levels


@pytest.mark.parametrize("active", [1, 2, 4])
def test_each_active_level_has_the_standard_deviation_one_over_their_number(active):
    grown = _grown(400, 8, active)
    drawn = init_pyramid(KEY, 400, 8, active=active)
    for levels in (grown, drawn):
        for i, level in enumerate(levels):
            if i >= active:
                assert jnp.all(level == 0)
                continue
            count = level.size
            # Four standard errors of the standard deviation, at least 1,200 draws a level.
            assert abs(jnp.std(level) * active - 1) < 4 / np.sqrt(2 * count)
            assert abs(jnp.mean(level) * active) < 4 / np.sqrt(count)


def test_growing_rescales_old_levels_and_draws_one_new_one():
    before = _grown(3, 8, 2)
    after = grow_pyramid(before, jax.random.key(7), 2)
    for old, new in zip(before[:2], after[:2], strict=True):
        np.testing.assert_allclose(new, old * (2 / 3), rtol=1e-6)
    assert jnp.all(before[2] == 0)
    assert jnp.all(after[2] != 0)
    assert jnp.all(after[3] == 0)
    silent = grow_pyramid(before, jax.random.key(7), 2, "zero")
    np.testing.assert_array_equal(silent[1], after[1])
    assert jnp.all(silent[2] == 0)


@pytest.mark.slow
def test_growing_with_zero_makes_the_image_paler_not_another():
    before = _grown(2, 8, 2)
    after = grow_pyramid(before, KEY, 2, "zero")
    logit = lambda x: jnp.log(x) - jnp.log1p(-x)  # noqa: E731
    np.testing.assert_allclose(
        logit(images.decode(after)), logit(images.decode(before)) * (2 / 3), rtol=1e-4, atol=1e-5
    )


def test_growing_compiles_once():
    grow = jax.jit(lambda *args: images.grow_pyramid(*args))
    levels = init_pyramid(KEY, 2, 8)
    for active in range(1, 4):
        levels = grow(levels, KEY, jnp.int32(active))
    assert grow._cache_size() == 1
    assert all(jnp.any(level != 0) for level in levels)


def test_inactive_levels_get_no_gradient_and_stay_zero_under_adam():
    levels = init_pyramid(KEY, 2, 8, active=2)
    optimizer = optax.adam(0.1)
    state = optimizer.init(levels)

    @jax.jit
    def update(levels, state, active):
        gradient = jax.grad(lambda x: jnp.sum(jnp.square(images.decode(x, active))))(levels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(levels, updates), state, gradient

    for _ in range(3):
        new, state, gradient = update(levels, state, jnp.int32(2))
        assert all(jnp.any(g != 0) for g in gradient[:2])
        assert all(jnp.all(g == 0) for g in gradient[2:])
        assert all(jnp.all(a != b) for a, b in zip(new[:2], levels[:2], strict=True))
        assert all(jnp.all(level == 0) for level in new[2:])
        levels = new


def test_masking_hides_whatever_an_inactive_level_holds():
    levels = _grown(2, 8, 4)
    hidden = (*levels[:2], *(jnp.full_like(level, jnp.inf) for level in levels[2:]))
    expected = images.decode((*levels[:2], *(jnp.zeros_like(level) for level in levels[2:])))
    np.testing.assert_array_equal(images.decode(hidden, 2), expected)


@pytest.mark.parametrize("kind", ["pyramid", "pixels"])
def test_an_image_does_not_depend_on_how_many_there_are(kind):
    few = init_pyramid(KEY, 2, 8, kind=kind, active=1)
    many = init_pyramid(KEY, 5, 8, kind=kind, active=1)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:2])
    few, many = (grow_pyramid(levels, KEY, 1) for levels in (few, many))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:2])
    np.testing.assert_allclose(images.decode(few), images.decode(many)[:2], atol=1e-6)


def test_images_and_levels_are_drawn_independently():
    levels = init_pyramid(KEY, 40, 4, active=3)
    assert jnp.any(levels[2][0] != levels[2][1])
    coarse, fine = jnp.ravel(levels[0]), jnp.ravel(levels[2][:, 0, 0])
    # Five standard errors of the correlation of 120 pairs.
    assert abs(jnp.corrcoef(coarse, fine)[0, 1]) < 5 / np.sqrt(120)


@pytest.mark.parametrize("decorrelate", [True, False])
def test_from_images_inverts_decode(decorrelate):
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.uniform(0.001, 0.999, (3, 8, 8, 3)), jnp.float32)
    levels = images.from_images(given, decorrelate=decorrelate)
    assert [level.shape for level in levels] == [(3, 8, 8, 3)]
    # Measured: 4e-7 with decorrelation.
    np.testing.assert_allclose(images.decode(levels, decorrelate=decorrelate), given, atol=3e-6)


def test_grey_images_have_no_colour_and_keep_their_brightness():
    colored = images.decode(_grown(2, 8, 4), grey=True)
    assert jnp.all(colored == colored[..., :1])
    assert float(jnp.std(colored)) > 0.05
    given = jnp.repeat(
        jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 1)), jnp.float32), 3, -1
    )
    given = 0.002 + 0.996 * given
    back = images.decode(images.from_images(given, grey=True), grey=True)
    np.testing.assert_allclose(back, given, atol=3e-6)


def test_black_and_white_come_back_within_a_thousandth():
    given = jnp.stack([jnp.zeros((4, 4, 3)), jnp.ones((4, 4, 3))])
    decoded = images.decode(images.from_images(given))
    np.testing.assert_allclose(decoded, given, atol=1.01e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_decoded_images_lie_between_zero_and_one(scale):
    levels = jax.tree.map(lambda level: scale * level, _grown(2, 8, 4))
    decoded = images.decode(levels)
    assert decoded.shape == (2, 8, 8, 3)
    assert decoded.dtype == jnp.float32
    assert jnp.all((decoded >= 0) & (decoded <= 1))
    if scale == 0:
        assert jnp.all(decoded == 0.5)


def test_zero_init_is_grey():
    levels = init_pyramid(KEY, 2, 8, init="zero", active=3)
    assert jnp.all(images.decode(levels) == 0.5)


def test_without_decorrelation_channels_are_apart_and_with_it_the_first_is_brightness():
    step = jnp.zeros((1, 4, 4, 3)).at[..., 0].set(1.0)
    plain = images.decode((step,), decorrelate=False)
    assert jnp.all(plain[..., 0] > 0.8)
    assert jnp.all(plain[..., 1:] == 0.5)
    colour = images.decode((step,))
    assert jnp.all(colour > 0.5)
    assert jnp.max(jnp.ptp(colour, axis=-1)) < 0.02


@pytest.mark.slow
def test_everything_stays_float32_where_float64_is_possible():
    with jax.enable_x64(True):
        levels = init_pyramid(jax.random.key(0), 1, 4, active=2)
        results = [
            levels,
            grow_pyramid(levels, jax.random.key(0), 2),
            images.decode(levels, jnp.asarray(2)),
            jax.grad(lambda x: jnp.sum(images.decode(x)))(levels),
            images.from_images(jnp.full((1, 4, 4, 3), 0.3, jnp.float32)),
        ]
        assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}


# Parametrisations, which are these functions with their options.

PYRAMID = images.Pyramid(20, start_resolution=2, grow_every=3, grow_delay=1)
each_made = pytest.mark.parametrize(
    "made",
    [PYRAMID, images.Pyramid(8, "zero", grow_every=0), images.Pixels(8, grey=True)],
    ids=["pyramid", "whole", "pixels"],
)


@each_made
def test_every_array_of_a_parametrisation_has_a_row_for_each_image(made):
    assert isinstance(made, images.Parametrisation)
    few, many = made.init_params(KEY, 2), made.init_params(KEY, 5)
    for a, b in zip(few, many, strict=True):
        assert len(a) == 2
        np.testing.assert_array_equal(a, b[:2])
    assert made.decode(many, 4).shape == (5, made.resolution, made.resolution, 3)
    np.testing.assert_allclose(made.decode(few, 4), made.decode(many, 4)[:2], atol=1e-6)


def test_a_pyramid_is_the_functions_with_its_options():
    assert isinstance(PYRAMID, images.Growing)
    assert PYRAMID.sizes == images.level_sizes(20) == (1, 2, 4, 8, 16, 20)
    params = PYRAMID.init_params(KEY, 2)
    expected = images.init_pyramid(KEY, 2, 20, active=2)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    active = [images.num_active(step, PYRAMID.sizes, 2, 3, 1) for step in range(20)]
    assert [PYRAMID.num_active(step) for step in range(20)] == active
    assert [PYRAMID.sizes.index(PYRAMID.side_at(step)) + 1 for step in range(20)] == active
    for step in (4, 7, 13):
        grown = PYRAMID.grow(KEY, params, step)
        expected = images.grow_pyramid(params, KEY, active[step - 1])
        jax.tree.map(np.testing.assert_array_equal, grown, expected)
        # What does not count shows nothing, whatever it holds.
        loud = jax.tree.map(jnp.ones_like, params)
        np.testing.assert_array_equal(PYRAMID.decode(loud, step), images.decode(loud, active[step]))


def test_a_pyramid_grows_where_one_more_level_counts_traced_or_not():
    traced = jax.jit(PYRAMID.grows_at)
    grows = [bool(PYRAMID.grows_at(step)) for step in range(20)]
    assert [step for step, due in enumerate(grows) if due] == [4, 7, 10, 13]
    assert [bool(traced(jnp.int32(step))) for step in range(20)] == grows
    whole, known = images.Pyramid(20, grow_every=0), []
    assert not any(whole.grows_at(step) for step in range(20))
    # Known without the step, so that nothing of growth is compiled.
    jax.make_jaxpr(lambda step: known.append(whole.grows_at(step)))(0)
    assert known == [False]
    assert whole.side_at(0) == 20


def test_pixels_do_not_grow_and_start_from_images():
    made = images.Pixels(8, init="real", decorrelate=False)
    assert not isinstance(made, images.Growing)
    with pytest.raises(UserError, match="from_images"):
        made.init_params(KEY, 2)
    given = jnp.full((2, 8, 8, 3), 0.25).at[..., 0].set(0.75)
    params = images.from_images(given, decorrelate=False)
    np.testing.assert_allclose(made.decode(params, 0), given, atol=3e-6)
    drawn = images.Pixels(8).init_params(KEY, 2)
    expected = images.init_pyramid(KEY, 2, 8, kind="pixels")
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
