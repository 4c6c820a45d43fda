"""A folder is one process's at a time, as far as its file system has locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from lgm_jax import locks, runs
from lgm_jax.errors import UserError

IDENTITY = {"seed": 0}


def use(folder):
    run = runs.check_run(str(folder), IDENTITY, overwrite=False)
    run.open(IDENTITY, {})
    return run


@pytest.mark.parametrize("lacking", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EPERM"])
def test_without_locks_a_run_goes_on_and_says_so_once(lacking, tmp_path, monkeypatch, capsys):
    number = getattr(errno, lacking)

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    # As a process left it that was killed on another machine.
    (tmp_path / locks.NAME).write_text("4242\nnode017\n1\n")
    use(tmp_path).close()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"note: workdir {tmp_path} cannot be locked ({os.strerror(number)})")


@pytest.mark.parametrize("held", ["EWOULDBLOCK", "EACCES"])
def test_who_holds_a_lock_is_named_and_what_to_delete(held, tmp_path, monkeypatch):
    number = getattr(errno, held)

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / locks.NAME).write_text("4242\nnode017\n")
    with pytest.raises(UserError) as refused:
        use(tmp_path)
    assert "another process is using workdir" in str(refused.value)
    assert "(4242 on node017)" in str(refused.value)
    assert f"delete {tmp_path / locks.NAME}" in str(refused.value)
    assert type(refused.value).__name__ == "InUseError"


def test_a_killed_process_leaves_the_folder_to_others(tmp_path):
    program = (
        "import os, sys; from lgm_jax import runs\n"
        f"run = runs.check_run(sys.argv[1], {IDENTITY}, overwrite=False)\n"
        f"run.open({IDENTITY}, {{}})\n"
        "print(os.getpid(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        holder = process.stdout.readline().strip()
        with pytest.raises(UserError, match=rf"another process is using workdir .*\({holder} on"):
            use(tmp_path)
        process.kill()
    use(tmp_path).close()
