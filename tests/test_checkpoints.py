"""Checkpoints of states of any numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lgm_jax.checkpoints import Checkpoints
from lgm_jax.distill import State


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool"])
def test_parameters_of_any_type_are_read_as_they_were_written(dtype, tmp_path):
    """Of one's own parametrisation, say."""
    values = jnp.arange(24).reshape(2, 3, 4).astype(dtype)
    state = State(jnp.int32(3), {"images": values}, {"images": ()})
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(epath.Path(tmp_path), 1) as checkpoints:
        found = checkpoints.restore(state)
    assert found is not None
    assert found.params["images"].dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, found, state)
