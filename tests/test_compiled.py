"""What the compiler of TPUs says of the quickstart's step; of ImageNet's, where there is time."""

from __future__ import annotations

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest

import launch
from lgm_jax import accelerators, compiled, devices, features, hlo, memory, plan
from lgm_jax.programs import Programs

MISSING = importlib.util.find_spec("libtpu") is None
if MISSING and os.environ.get("LGM_REQUIRE_TPU") == "1":
    raise ModuleNotFoundError("LGM_REQUIRE_TPU=1, but libtpu is missing")

needs_tpu_compiler = pytest.mark.skipif(MISSING, reason="needs libtpu: pip install 'lgm_jax[tpu]'")


@pytest.fixture(autouse=True)
def with_the_cache():
    """As other tests of this process have it."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def config_of(*flags):
    config, *_ = launch.parse(["launch.py", *flags], writes=False)
    return config


@needs_tpu_compiler
def test_the_quickstart_compiles_for_eight_tpus():
    accelerators.on_cpu()
    topology = accelerators.find("v5e:2x4")
    config = config_of("--config=configs/quickstart.py", "--config.backbone.dtype=bfloat16")
    programs = plan.make_programs(config, topology.devices, 10, 1149, options=topology.options)
    program = programs.lower(5).compile()
    text = program.as_text()
    assert dict(programs.mesh.shape) == {"image": 2, "copy": 4}
    # Two sums by class of 128 features and one, with their weights; gradients of five images of
    # levels from 1 to 32 px among devices that share them.
    head, levels = 10 * (128 + 1), 3 * (1 + 4 + 16 + 64 + 256 + 1024)
    found = {(each.kind, each.numbers, each.group) for each in hlo.read_collectives(text, 8)}
    assert found == {("all-reduce", 2 * head + 2, 8), ("all-reduce", 5 * levels, 4)}
    assert "gather" not in text
    parts = programs.flops(5)
    # No product of the backbone is in float32: those that resize are, and are not rounded.
    assert not [key for key in parts if key[1:] == ("float32", False)]
    forward = parts["synthetic forward", "float32", True]
    assert forward < 0.02 * parts["synthetic forward", "bfloat16", False]
    assert parts["backward", "float32", True] == parts["again", "float32", True] == forward
    assert memory.account(program).total + programs.beside() < topology.accelerator.memory


@needs_tpu_compiler
def test_tpus_embed_few_images_at_a_time():
    seen = []

    def apply(_, images):
        seen.append(len(images))
        return images.mean(axis=(1, 2))

    def lower(devices_, platform):
        mesh = devices.make_mesh(devices=devices_)
        images = jax.ShapeDtypeStruct((100, 4, 4, 3), jnp.uint8)
        places = jax.ShapeDtypeStruct((100, 1), jnp.int32)
        laid = devices.put(mesh, (images, places), devices.ROWS)
        jitted = features.embed_views.for_platform(platform)
        options = {"apply": apply, "crop": 4, "augmentation": None, "mesh": mesh}
        jitted.lower({}, laid[0], jax.random.key(0), laid[1], **options)
        return max(seen)

    assert lower(jax.devices()[:1], "cpu") == 100
    seen.clear()
    assert lower(accelerators.find("v5e:1x1").devices, "tpu") == 25


@pytest.mark.parametrize(
    ("each", "size", "said"),
    [
        (
            10_000_000,
            40,
            "with config.microbatch=80: 800 MB of 500 MB; config.microbatch=40 fits",
        ),
        (10**9, 1, "with config.microbatch=80: 80 GB of 500 MB|even with one view at a time"),
    ],
)
def test_what_does_not_fit_is_said_with_what_does(each, size, said, monkeypatch):
    programs = plan.make_programs(
        config_of("--config=configs/quickstart.py"), jax.devices()[:1], 10, 1149
    )
    monkeypatch.setattr(Programs, "lower", lambda _, size: size)
    monkeypatch.setattr(memory, "try_compile", lambda size, _: (None, each * size))
    fits, _, notes = compiled.compile_fitting(programs, 80, 500_000_000)
    assert fits == size
    assert notes == [f"note: out of memory {words}" for words in said.split("|")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.real.source=stream"], r"10 a step and device in 1 of 10, [\d.]+ [kM]B"),
        (["--config.real.source=cached"], r"128 a batch and device in 1 of 128, [\d.]+ [kM]B"),
    ],
)
def test_a_compiled_plan_says_how_real_images_are_embedded(flags, said, monkeypatch):
    """By the compiler of CPUs, which is here."""
    h100 = accelerators.ACCELERATORS["h100"]
    here = accelerators.Topology(h100, jax.devices()[:1], {})
    monkeypatch.setattr(accelerators, "find", lambda name: here)
    text = compiled.describe(config_of("--config=configs/quickstart.py:quick", *flags), "here")
    assert re.search(rf"\nreal images +{said}\n", text), text


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "module"), [("v5e:4x4", "libtpu"), ("h100:8", "jax_cuda12_plugin")]
)
def test_imagenet_compiles_for_a_slice_and_for_a_host(name, module, capsys):
    """Minutes, and 3 GB."""
    pytest.importorskip(module)
    arguments = ["--config=configs/dinov2_in1k.py:cached", "--plan", f"--plan_topology={name}"]
    assert launch.main(["launch.py", *arguments]) == 0
    text = capsys.readouterr().out
    # One sum of two head gradients a step.
    assert re.search(r"exchanged +6\.15 MB a step and device: 1 all-reduce of 6\.15 MB", text)
    assert "out of memory" not in text
