"""Machines that lack what others have: a home, a device, space, rights, a current folder."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import launch
import lgm_jax
from configs import common
from lgm_jax import features
from lgm_jax.data import cache
from tests.launching import QUICK, ROOT, refuse, start
from tests.marks import slow

# It grows as a quick run does, so that the step is compiled already.
DISTILL = ("--config.stages=distill", "--config.steps=2", "--config.images.grow_every=1")


@pytest.fixture
def homeless(monkeypatch):
    """No home folder is known, as in a container of a user whom the system does not know."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", home)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_cache(capsys):
    assert cache.folder() is None
    assert cache.compiled() is None
    assert "(no home folder is known): set XDG_CACHE_HOME\n" in capsys.readouterr().out
    assert cache.remember("labels", "x", lambda: np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("homeless")
@pytest.mark.slow
def test_without_a_home_nothing_is_kept_and_it_is_said(tmp_path, capsys):
    assert start(QUICK, *DISTILL, f"--workdir={tmp_path / 'run'}") == 0
    said = capsys.readouterr().out
    assert "note: programs are compiled anew at every start (no home folder is known)" in said


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert start(QUICK, *DISTILL, f"--workdir={tmp_path / 'run'}") == 0
    assert f"{tmp_path / 'file'}/lgm_jax/compiled: Not a directory" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, *map(slow, (errno.EDQUOT, errno.EROFS, errno.EACCES))]
)
def test_the_folder_that_cannot_be_written_is_named(number, tmp_path, monkeypatch, capsys):
    shared, written = tmp_path / "shared", epath.Path.write_bytes

    def write(path, content):
        if str(path).startswith(str(shared)):
            # As the system says it of an open file: without a name.
            raise OSError(number, os.strerror(number))
        return written(path, content)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", write)
    # A shard is a batch: what is embedded before it is written.
    monkeypatch.setattr(features, "SHARD", features.BATCH)
    arguments = ["--config.real.source=cached", f"--config.real.cache={shared}"]
    line = refuse(capsys, QUICK, *DISTILL, *arguments, f"--workdir={tmp_path / 'run'}")
    assert str(shared) in line
    assert os.strerror(number) in line
    assert not list(shared.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("cuda", ("JAX_PLATFORMS=cuda", "pip install -e '.[cuda12]'", "unset JAX_PLATFORMS")),
        ("tpu", ("JAX_PLATFORMS=tpu", "pip install -e '.[tpu]'", "unset JAX_PLATFORMS")),
        ("CUDA", ("JAX_PLATFORMS=CUDA", "pip install -e '.[cuda12]'", "unset JAX_PLATFORMS")),
        ("cpu, tpu", ("JAX_PLATFORMS=cpu, tpu", "pip install -e '.[tpu]'")),
        ("cpuu", ("JAX_PLATFORMS=cpuu", "unset JAX_PLATFORMS")),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(platform, words, tmp_path, monkeypatch, capsys):
    raised = {"cuda": AssertionError(), "tpu": RuntimeError("Unable to\ninitialize")}

    def devices():
        raise raised.get(platform, RuntimeError("Unable to initialize (set JAX_PLATFORMS='')"))

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(jax, "process_count", devices)
    line = refuse(capsys, QUICK, *DISTILL, f"--workdir={tmp_path / 'run'}")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("platform", ["CPU", slow(" cpu"), slow("cpu ,"), slow(" ")])
def test_a_platform_is_known_in_capitals_and_with_spaces(platform):
    start = "from lgm_jax import platforms; platforms.start(); import jax; print(jax.devices())"
    process = subprocess.run(
        [sys.executable, "-c", start],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "CpuDevice(id=0)" in process.stdout


def test_an_xla_flag_that_nobody_knows_is_one_line_and_no_abort(tmp_path):
    process = subprocess.run(
        [sys.executable, "launch.py", QUICK, *DISTILL, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_no_such_flag=1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (process.returncode, process.stdout) == (2, f"lgm_jax {lgm_jax.__version__}\n")
    assert process.stderr.startswith("error: XLA_FLAGS has what this XLA does not know: --xla_no")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "config",
    ["configs/quickstart.py:quick", "quickstart:quick", "quickstart.py:quick", "mine", "./mine.py"],
)
def test_a_config_is_found_from_any_folder(config, tmp_path, monkeypatch, capsys):
    shutil.copy(ROOT / "configs" / "quickstart.py", tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    assert start(f"--config={config}", "--config.ipc=99999", "--workdir=run") == 2
    assert "config.ipc is 99999, but the smallest class has" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["", ":quick"])
def test_a_config_is_found_where_folders_have_colons(argument, tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    shutil.copy(ROOT / "configs" / "quickstart.py", folder / "mine.py")
    config, *_ = launch.parse(["", f"--config={folder / 'mine.py'}{argument}", "--workdir=run"])
    assert config.steps == (6 if argument else 800)


def test_an_experiment_is_found_by_its_name_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("table2", "experiments/table2.py", "configs/experiments/table2.py"):
        config, *_ = launch.parse(["", f"--config={name}:embedded", "--workdir=run"])
        assert config.experiment is not None


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ("configs/quikstart.py", "did you mean configs/quickstart.py"),
        ("quikstart", "did you mean quickstart"),
        ("/nowhere/quickstart.py", "did you mean configs/quickstart.py"),
        ("experiments/tabel2.py", "did you mean configs/experiments/table2.py"),
        ("configs", "is a folder"),
    ],
)
def test_a_hint_to_a_config_can_be_typed_as_it_is(config, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if hint == "is a folder":
        (tmp_path / "configs").mkdir()
    line = refuse(capsys, f"--config={config}", "--workdir=run")
    assert hint in line
    if "did you mean" in hint:
        named = hint.removeprefix("did you mean ")
        again = refuse(capsys, f"--config={named}", "--config.seed=-1", "--workdir=run")
        assert "config.seed must be" in again


def test_a_key_is_unset_by_none_where_it_may_be(tmp_path, capsys, monkeypatch):
    optional = [name for name, key in common.KEYS.items() if isinstance(key.default, type)]
    text = [name for name, key in common.KEYS.items() if key.default == ""]
    unset = [f"--config.{name}=None" for name in (*optional, *text)]
    config, *_ = launch.parse(["launch.py", QUICK, "--workdir=run", *unset])
    flat = common.flatten(config)
    assert {name: flat[name] for name in optional} == dict.fromkeys(optional)
    assert {name: flat[name] for name in text} == dict.fromkeys(text, "")
    line = refuse(capsys, QUICK, "--config.steps=None", f"--workdir={tmp_path / 'run'}")
    assert "--config.steps cannot be unset: its default is 5000" in line


@pytest.mark.parametrize(
    ("typed", "microbatch"),
    [
        (["--config.microbatch", "None"], None),
        (["--config.microbatch", "4"], 4),
        (["--config.microbatch=4", "--config.microbatch=None"], None),
        (["--config.microbatch=None", "--config.microbatch=4"], 4),
    ],
)
def test_of_two_values_the_last_counts_with_or_without_an_equals_sign(typed, microbatch):
    config, *_ = launch.parse(["launch.py", QUICK, "--workdir=run", *typed])
    assert config.microbatch == microbatch


def test_a_cache_file_that_a_crash_left_empty_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lgm_jax").mkdir()
    (tmp_path / "lgm_jax/labels_x.npy").touch()
    assert cache.remember("labels", "x", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert cache.remember("labels", "x", lambda: np.arange(9)).tolist() == [0, 1, 2]


def test_values_of_no_key_s_type_are_one_line(tmp_path, capsys):
    for name, key in common.KEYS.items():
        kind = key.default if isinstance(key.default, type) else type(key.default)
        if kind is str:
            continue
        for value in ("nonsense", "(1, 2)", *([""] if not isinstance(key.default, type) else [])):
            refuse(capsys, QUICK, f"--config.{name}={value}", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize("name", ["a" * 256, "/".join(["a" * 200] * 30)])
def test_a_name_that_no_file_system_takes_is_one_line(name, tmp_path, capsys):
    line = refuse(capsys, QUICK, *DISTILL, f"--workdir={tmp_path / name}")
    assert "File name too long" in line


def test_shards_are_written_whole_or_named(tmp_path):
    folder = epath.Path(tmp_path / "file")
    Path(folder).write_text("mine")
    with pytest.raises(OSError, match="file") as refused:
        features._write_shard(folder, 0, np.zeros((2, 3), np.float32))
    assert str(folder) in str(refused.value.filename)
