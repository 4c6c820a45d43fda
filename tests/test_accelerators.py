"""Devices by name, their figures, and what a plan for them says to a user."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib import resources

import jax
import pytest

import launch
from lgm_jax import accelerators
from lgm_jax.accelerators import ACCELERATORS

QUICK = ["launch.py", "--config=configs/quickstart.py", "--plan"]


@pytest.fixture(autouse=True)
def with_the_cache():
    """As other tests of this process have it."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_gpus_have_the_memory_and_bandwidth_of_their_descriptions():
    gpus = [name for name, each in ACCELERATORS.items() if each.platform == "gpu"]
    assert gpus == ["a100", "h100", "h200"]
    for name in gpus:
        text = (resources.files("lgm_jax") / "gpus" / f"{name}.txtpb").read_text()
        told = dict(re.findall(r"(\w+): (\d+)", text))
        assert ACCELERATORS[name].memory == int(0.75 * int(told["device_memory_size"]))
        bandwidth = ACCELERATORS[name].bandwidth
        assert bandwidth == pytest.approx(int(told["memory_bandwidth"]) / 1e9, rel=1e-3)
        assert name.upper() in text


def test_peaks_are_those_of_the_operands():
    assert ACCELERATORS["v5e"].peak("bfloat16", exact=False) == 197e12
    assert ACCELERATORS["v5e"].peak("float32", exact=False) == 197e12
    assert ACCELERATORS["v5e"].peak("float32", exact=True) == pytest.approx(197e12 / 6)
    assert ACCELERATORS["h100"].peak("float32", exact=False) == 495e12
    assert ACCELERATORS["h100"].peak("float32", exact=True) == 67e12


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plan_topology=v6:2x4"], "did you mean v6e"),
        (["--plan_topology=h100"], "has no shape; for example h100:8"),
        (["--plan_topology=v5e:0x4"], "has no shape; for example v5e:2x4"),
        (["--plan_topology=h100:8", "--plan_memory=80"], "decides --plan_memory: leave it out"),
        (["--plan_topology=h100:2x8x4"], "GPUs are h100:COUNT or h100:HOSTSxCOUNT"),
        (["--plan_topologi=h100:8"], "did you mean --plan_topology"),
    ],
)
def test_devices_that_are_none_are_refused(flags, words, capsys):
    assert launch.main([*QUICK, *flags]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line)
    assert words in line


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("v5e:2x4", "libtpu", "tpu"), ("h100:8", "jax_cuda12_plugin", "cuda12")],
)
def test_a_compiler_that_is_not_installed_is_named(name, module, extra, capsys, monkeypatch):
    if importlib.util.find_spec(module) is not None:
        # As where it is not: what is None in `sys.modules` cannot be imported.
        monkeypatch.setitem(sys.modules, module, None)
        finders = {"tpu": "_tpus", "cuda12": "_gpus"}

        def missing(*_):
            raise RuntimeError("JAX support not installed")

        monkeypatch.setattr(accelerators, finders[extra], missing)
    assert launch.main([*QUICK, f"--plan_topology={name}"]) == 2
    line = capsys.readouterr().err
    assert line == (f"error: no compiler for {name} is installed: pip install 'lgm_jax[{extra}]'\n")
