"""What a plan counts is what is computed, and it is told without weights or images."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from lgm_jax import backbones, devices, distill, flops, images, objectives, plan, settings
from lgm_jax.backbones import network
from lgm_jax.backbones.vit_spec import AttentionSpec, EmbedSpec, MlpSpec, PoolSpec, ViTSpec
from lgm_jax.execution import Execution
from lgm_jax.programs import Outline, Programs

FAMILIES = {
    "plain": {},
    "gated": {"mlp": MlpSpec(80, "silu", gated=True)},
    "map": {"pool": PoolSpec("map"), "embed": EmbedSpec(8, class_token=False)},
    "query": {"pool": PoolSpec("query"), "embed": EmbedSpec(8, class_token=False)},
    "wide map": {"pool": PoolSpec("map", projection=24, heads=4, mlp=MlpSpec(40), prefix=True)},
    "projection": {"pool": PoolSpec(projection=24), "embed": EmbedSpec(8, registers=3)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_the_compiled_products(family):
    """One block, since XLA counts the body of a loop once."""
    parts = {"embed": EmbedSpec(8), "mlp": MlpSpec(96), **FAMILIES[family]}
    spec = ViTSpec(resolution=64, width=48, depth=1, attention=AttentionSpec(3), **parts)
    apply = backbones.make_apply(spec, network.HALF)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    params = backbones.abstract_params(spec)
    text = jax.jit(apply).lower(params, images).as_text()
    counted = sum(map(product_flops, products(text)))
    assert counted == flops.count(apply, params, images)


def products(text: str) -> list[str]:
    found = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(found) > 5
    return found


def product_flops(line: str) -> int:
    """Twice the size of the result times that of what is summed over."""
    left, result = (
        [int(n) for n in re.findall(r"\d+(?=x)", shape)]
        for shape in re.search(r": \(tensor<(\S+)>, .*\) -> tensor<(\S+)>", line).groups()
    )
    summed = re.search(r"contracting_dims = \[([\d, ]*)\]", line).group(1)
    total = 2
    for size in [*result, *(left[int(i)] for i in summed.split(","))]:
        total *= size
    return total


LGM = objectives.LGM()


def recipe_of(objective=LGM, **real):
    """Ten digits of four copies."""
    task = distill.Distillation(10, images.Pyramid(32), 32, objective=objective, copies=4)
    return settings.Recipe(task, settings.Updates(), settings.RealViews(**real))


def plan_of(recipe, outlines, machine, size=None):
    """The plan for 1,149 training images."""
    task = recipe.task
    mesh = devices.outline_mesh(task.num_images, task.copies, machine.devices)
    programs = Programs(recipe, outlines, jax.random.key(0), 1149, on_host=False, mesh=mesh)
    return plan.make_plan(programs, machine, size)


# Of the levels from 1 to 32 px, with three colours, in float32.
PYRAMID = 4 * 3 * (1 + 4 + 16 + 64 + 256 + 1024)


def test_memory_and_exchange_follow_the_devices():
    outline = Outline(*backbones.outline("digits_contrastive"))
    recipe = recipe_of()
    one, four = (plan_of(recipe, [outline], plan.Machine(count, memory=0.1)) for count in (1, 4))
    assert (one.programs.views, four.programs.views) == (40, 10), (
        "five images with two copies each fill four devices"
    )
    assert one.exchanged == 2 * 4 * (10 * 129 + 1)
    assert four.exchanged == one.exchanged + 5 * PYRAMID, "two devices share each image's gradient"
    assert one.flops == four.flops
    assert one.memory["weights"] == sum(leaf.size for leaf in jax.tree.leaves(outline.params)) * 4
    # All images; and of the batches, one in use and the next, with their features; of those in
    # use also a label, a weight and two numbers.
    pixels, batch = 3 * 32 * 32, 3 * 32 * 32 + 4 * 128
    assert one.memory["real"] == 1149 * pixels + 2 * 40 * batch + 40 * 16
    assert four.memory["real"] == 1149 * pixels + 2 * 10 * batch + 10 * 16
    small = plan_of(recipe, [outline], plan.Machine(memory=0.1), one.execution.microbatch // 2)
    assert small.execution.microbatch < one.execution.microbatch
    assert small.memory["microbatch"] < one.memory["microbatch"]
    assert small.flops["again"] == small.flops["synthetic forward"]


@pytest.mark.parametrize(("size", "line"), [(7, "10 of 4"), (3, "20 of 2"), (25, "2 of 20")])
def test_microbatches_are_counted_as_the_step_divides_views(size, line):
    """In equal parts of whole images, or of the copies of one."""
    outline = Outline(*backbones.outline("digits_contrastive"))
    planned = plan_of(recipe_of(), [outline], plan.Machine(memory=0.1), size)
    words = plan.microbatches_in_words(planned.programs, planned.execution)
    assert f"40 views a device in {line}, " in words


def test_plan_is_printed_without_weights_or_data(capsys):
    arguments = ["launch.py", "--config=configs/clip_in1k.py", "--plan", "--plan_tflops=400"]
    assert launch.main(arguments) == 0
    text = capsys.readouterr().out
    assert "planned for 1281167 training images" in text
    assert "exchanged      4.1 MB a step" in text
    assert "steps/s at the peak of 1 x 400 TFLOP/s" in text


@pytest.mark.slow
def test_time_counts_padding_and_a_ring(capsys):
    """Of ten images with three copies, eight devices have five views each: 40 places for 30."""

    def said(*flags):
        arguments = ["--config=configs/quickstart.py", "--config.microbatch=80", "--plan"]
        arguments += ["--config.copies=3"]
        assert launch.main(["launch.py", *arguments, "--plan_tflops=1e-3", *flags]) == 0
        return capsys.readouterr().out

    rates = [
        float(re.search(r"time +(\S+) steps/s", said(f"--plan_devices={n}"))[1]) for n in (1, 8)
    ]
    np.testing.assert_allclose(rates[1], 6 * rates[0], rtol=0.01)
    text = said("--plan_devices=8", "--plan_bandwidth=1e-5")
    exchanged = 2 * 4 * (10 * 129 + 1) + 5 * PYRAMID
    ms = 1e3 * 2 * 7 / 8 * exchanged / 1e4
    assert f"exchange       {ms:.3g} ms a step at 1e-05 GB/s" in text
    alone = re.search(r"45% of it (\S+) ms a step", said("--plan_devices=8"))
    both = re.search(r"with the exchange (\S+) ms a step", text)
    np.testing.assert_allclose(float(both[1]) - float(alone[1]), ms, rtol=0.05)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--plan_memory=none", "--plan_memory must be a positive number"),
        ("--plan_devices=0", "--plan_devices must be a positive number"),
        ("--plan_flops=3", "did you mean --plan_tflops"),
        ("--config.images.crop=30", "does not divide"),
        ("--config.backbone.name=nothing", "unknown backbone"),
    ],
)
def test_bad_plans_are_refused(flag, words, capsys):
    assert launch.main(["launch.py", "--config=configs/quickstart.py", "--plan", flag]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line)
    assert words in line


@pytest.mark.slow
def test_each_objective_has_its_own_arithmetic_and_exchange():
    outline = Outline(*backbones.outline("digits_contrastive"))
    machine = plan.Machine(2, memory=0.1)
    # Two devices share the rows, of which one fills up.
    s, n, d, k = 40, 1150, 128, 10

    def plan_with(objective):
        return plan_of(recipe_of(objective, source="exact"), [outline], machine)

    plans = {name: plan_with(objective()) for name, objective in objectives.OBJECTIVES.items()}
    assert plans["sfm"].memory["real"] < plans["clp"].memory["real"] == plans["lgm"].memory["real"]
    # Scores and their gradient: of synthetic images differentiated once more, which is three
    # products for two. A cosine has four products of vectors, with their gradients nine.
    matched = 2 * d * k * (5 * s + 2 * n) + 9 * 2 * (d * k + k)
    assert plans["lgm"].flops["objective"] == matched
    # Of the means that all real images leave; sums of synthetic ones are differentiated once.
    assert plans["sfm"].flops["objective"] == 2 * d * k * (2 * s + k) + 9 * 2 * d * k
    scored = 2 * 2 * d * k * n
    assert scored + 3 * 2 * s * s * d < plans["clp"].flops["objective"] < 1.5 * scored
    assert plans["lgm"].exchanged == 2 * 4 * (k * (d + 1) + 1)
    assert plans["sfm"].exchanged == 4 * (k * (d + 1) + d + 1)
    assert plans["clp"].exchanged == 4 * (s * (2 * d + 2) + 2)
    # Four heads, each of all views, of which those of other copies have no weight.
    heads = plan_with(objectives.CLP(head_per_copy=True))
    assert heads.flops["objective"] == 4 * plans["clp"].flops["objective"]


def test_operations_are_counted_in_loops_branches_and_factorisations():
    a, b = jnp.zeros((4, 8)), jnp.zeros((8, 6))
    assert flops.count(jnp.dot, a, b) == 2 * 4 * 8 * 6
    assert flops.count(jax.jit(jnp.dot), a, b) == 2 * 4 * 8 * 6
    assert flops.count(lambda a, b: jax.lax.map(lambda row: row @ b, a), a, b) == 2 * 4 * 8 * 6
    assert flops.count(jnp.linalg.cholesky, jnp.eye(6)) == 6**3 / 3
    triangle, right = jnp.eye(6), jnp.zeros((6, 5))
    assert flops.count(jax.scipy.linalg.solve_triangular, triangle, right) == 6 * 6 * 5

    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((4, 6)))

    assert flops.count(either, a, b) == 2 * 4 * 8 * 6


def test_several_backbones_add_up():
    outline = Outline(*backbones.outline("digits_contrastive"))
    recipe = recipe_of(source="exact")
    one, two = (plan_of(recipe, [outline] * number, plan.Machine(memory=1.0)) for number in (1, 2))
    assert two.flops == {name: 2 * flops for name, flops in one.flops.items()}
    assert two.exchanged == 2 * one.exchanged
    for name, share in {"weights": 2, "real": 2, "images": 5 / 4}.items():
        assert two.memory[name] == share * one.memory[name]


# What compilers said of a step with products kept and fused attention, in bytes of a device
# (docs/scaling.md): by recipe, devices, and views at a time. Of H100,
# and of 16 and 8 v5e.
COMPILED = {
    ("dinov2_in100", 1, 250): 14_711_450_524,
    ("dinov2_in100", 1, 500): 28_509_946_524,
    ("dinov2_in100", 1, 1000): 53_625_783_404,
    ("dinov2_in1k", 1, 600): 39_810_295_020,
    ("dinov2_in1k", 1, 750): 49_064_381_676,
    ("dinov2_in1k", 8, 375): 21_282_760_632,
    ("dinov2_in1k", 64, 48): 2_855_785_364,
    ("dinov2_in1k", 16, 96): 5_962_064_896,
    ("dinov2_in100", 8, 125): 6_870_000_000,
    ("dinov2_in1k", 8, 189): 11_900_000_000,
    ("clip_in100", 1, 250): 11_293_603_996,
    ("clip_in100", 1, 500): 21_533_077_404,
}


@pytest.mark.parametrize(("case", "compiled"), COMPILED.items())
def test_planned_memory_is_that_of_the_compiler(case, compiled):
    """Within 15 %, though nothing is compiled."""
    name, count, size = case
    config, *_ = launch.parse(["launch.py", f"--config=configs/{name}.py:cached"], writes=False)
    config.microbatch = size
    images = 1_281_167 if name.endswith("1k") else 128_116
    classes = 1000 if name.endswith("1k") else 100
    planned = plan.plan_config(config, plan.Machine(count), classes, images)
    assert planned.execution == Execution(size, "products")
    assert sum(planned.memory.values()) == pytest.approx(compiled, rel=0.15)


def test_a_plan_keeps_what_an_accelerator_keeps(capsys):
    """375 views of one of eight H100 at once, as their compiler does: nothing is computed twice."""
    arguments = ["launch.py", "--config=configs/dinov2_in1k.py:cached", "--plan"]
    assert launch.main([*arguments, "--plan_devices=8"]) == 0
    text = capsys.readouterr().out
    assert "375 views a device in 1 of 375, products with weights kept" in text
    assert "again" not in text
