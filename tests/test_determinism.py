"""Flags for bit-exact GPUs: what is added, what is refused, and that XLA hears of it in time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lgm_jax import determinism
from lgm_jax.errors import UserError
from tests.marks import slow

ROOT = Path(__file__).parents[1]
OURS = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"

# The program up to where its stages would begin; then something that XLA compiles.
SCRIPT = """
import sys, launch, jax

def run(*arguments):
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()

launch.run = run
sys.exit(launch.main(sys.argv))
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", OURS),
        ("--xla_dump_to=/x --xla_cpu_enable_fast_math=true", None),
        ("--xla_gpu_autotune_level=0", f"--xla_gpu_autotune_level=0 {OURS}"),
    ],
)
def test_flags_are_added_to_those_given(before, after):
    assert determinism.add_flags(before) == (after or f"{before} {OURS}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("--xla_gpu_autotune_level=4", "needs xla_gpu_autotune_level=0, but XLA_FLAGS has"),
        ("-x --xla_gpu_deterministic_ops=false", "needs xla_gpu_deterministic_ops=true"),
        ("flags.txt", "the file that XLA_FLAGS names"),
    ],
)
def test_flags_that_contradict_are_refused(given, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        determinism.add_flags(given)


@pytest.mark.parametrize("deterministic", [True, slow(False)])
def test_xla_knows_the_flags_when_it_compiles(deterministic, tmp_path):
    """What XLA dumps beside a program are the options that it has."""
    arguments = ["--config=configs/quickstart.py:quick", f"--workdir={tmp_path / 'run'}"]
    arguments.append(f"--config.deterministic={deterministic}")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_dump_to={tmp_path}",
            # What is found compiled is not dumped.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        },
        check=True,
    )
    options = next(tmp_path.glob("*.debug_options")).read_text()
    assert ("xla_gpu_deterministic_ops: true" in options) == deterministic
    assert ("xla_gpu_autotune_level: 0" in options) == deterministic
