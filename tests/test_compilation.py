"""Options for XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from lgm_jax import compilation, devices, solvers, teachers


@pytest.fixture(autouse=True)
def _anew():
    compilation.options.cache_clear()
    yield
    compilation.options.cache_clear()


@pytest.mark.usefixtures("compiled_anew")
def test_products_are_left_to_xla_on_cpus():
    def product(x):
        return jax.nn.gelu(x @ x)

    matrix = jnp.ones((64, 64))
    compiled = compilation.Program(product).jitted.lower(matrix).compile()
    assert compilation.options()
    assert "ynn_fusion" not in compiled.as_text()


@pytest.mark.usefixtures("compiled_anew")
def test_so_is_the_training_of_probes():
    """YNNPACK made NaN of it in some processes of several devices."""
    table, labels = jnp.ones((1, 1, 200, 16)), jnp.zeros((1, 200), jnp.int32)
    protocol = solvers.Protocol(1, 1, 1, 1, "none", None, solver="lbfgs")
    data = solvers.Data(jnp.zeros(1, jnp.int32), teachers.Seen(table), labels)
    given = (jax.random.key(0), data, solvers.lbfgs, 10, protocol, devices.make_mesh())
    lowered = solvers._each_run.jitted.lower(*given)
    assert "ynn_fusion" not in lowered.compile().as_text()


def test_options_that_a_jaxlib_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "CPU", {"xla_cpu_of_another_time": ""})
    assert compilation.options() == {}
    assert compilation.Program(lambda x: x + 1)(1.0) == 2


def test_accelerators_have_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.options() == {}
