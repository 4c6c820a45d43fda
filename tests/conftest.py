"""Strict numerics for every test, shapes checked at run time, no network. Set before JAX starts."""

# ruff: noqa: E402

from __future__ import annotations

import atexit
import os
import tempfile

import jaxlib.version

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the tests' time was that of compilers. LLVM at -O0 takes half of it away, and so do XLA's
# emitters of before its fusion emitters, which JAX 0.10 still has. XLA_FLAGS overrules both. With
# them, programs around backbones, of which a run makes few and which compute most, are worth -O1
# (below); with fusion emitters, that takes a third longer than the little that is computed.
_flags = ["--xla_backend_optimization_level=0"]
_FUSION_EMITTERS_ALONE = jaxlib.version.__version_info__ >= (0, 11)
if not _FUSION_EMITTERS_ALONE:
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_flags, os.environ.get("XLA_FLAGS", "")]).strip()
# What one test compiles, another finds, whichever process they run in: most start the program, with
# the same steps. Nothing is kept between one test run and the next; workers and the processes that
# tests start get the folder from the first process.
_COMPILED = "LGM_TEST_COMPILED"
if _COMPILED not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="lgm_jax_compiled_")
    atexit.register(_compiled.cleanup)
    os.environ[_COMPILED] = _compiled.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[_COMPILED]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# JAX writes what it compiled in place. Who reads it meanwhile, or after the writer was killed,
# compiles for itself, and warns: in programs that tests start, on a stderr that is to be empty.
_HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry:UserWarning"
_warnings = [*filter(None, [os.environ.get("PYTHONWARNINGS")]), _HALF_WRITTEN]
os.environ["PYTHONWARNINGS"] = ",".join(_warnings)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import fcntl
import gc
import json
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxtyping

# Every jaxtyping annotation of the package is an assertion under test. Before its first import.
jaxtyping.install_import_hook("lgm_jax", "beartype.beartype")

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import lgm_jax
from lgm_jax import compilation, runs
from lgm_jax.backbones import Backbone, abstract_module, configs, families, load, port
from lgm_jax.data.dataset import ArraySplit
from tests.launching import QUICK, start
from tests.report_pages import write as write_page
from tests.run_folders import write_run

jax.config.update("jax_numpy_rank_promotion", "raise")
if not _FUSION_EMITTERS_ALONE:
    compilation.CPU["xla_backend_optimization_level"] = "1"

# Tests send signals, which the program ignores where it was started to, as by nohup or a script.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(_number) == signal.SIG_IGN:
        interrupts = _number == signal.SIGINT
        signal.signal(_number, signal.default_int_handler if interrupts else signal.SIG_DFL)

_connect = socket.socket.connect


def _connect_locally(self: socket.socket, address: Any) -> None:
    remote = self.family in (socket.AF_INET, socket.AF_INET6)
    if remote and address[0] not in ("localhost", "127.0.0.1", "::1"):
        raise OSError(f"tests do not use the network: {address}")
    _connect(self, address)


socket.socket.connect = _connect_locally


def pytest_configure(config: pytest.Config) -> None:
    # flax.nnx.State is generic over typing.Hashable, an old spelling that beartype remarks on.
    config.addinivalue_line(
        "filterwarnings",
        r"ignore:.*typing\.Hashable deprecated:"
        "beartype.roar.BeartypeDecorHintPep585DeprecationWarning",
    )
    config.addinivalue_line("filterwarnings", _HALF_WRITTEN)


# Files of which one test takes minutes: the first to begin, so that no worker waits for them. The
# first two share nothing, so that no worker waits for a run that the other one makes.
_LONG = ("test_sharding.py", "test_launch_errors.py", "test_hosts.py", "test_launch_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        begins = (item.path.name.startswith(name) for name in _LONG)
        return next((i for i, found in enumerate(begins) if found), len(_LONG))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    # What was imported and collected stays until the end, and most of what JAX traces, long. Python
    # looking through it all for what may go took a twelfth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)


# Linux lets a process have 65,530 maps of memory; each compiled program takes some, and one more
# crashes it. A file of tests made 5,000 at most, of those of the short suite.
_MOST_MAPS = 30_000


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Drops compiled programs between the files of tests where there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """For what looks at a compiled program: XLA makes it here and now, whatever is kept."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


TINY_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
"""`model_args` of the smallest Vision Transformer that has more than one of everything."""


def timm_config(pool: str = "token", **model_args: Any) -> dict[str, Any]:
    """A `config.json` in timm's format with statistics of its own."""
    return {
        "architecture": "vit_tiny_patch16_224",
        "global_pool": pool,
        "model_args": TINY_VIT | model_args,
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.25]},
    }


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of values by path, whose parts a slash divides."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        leaf = nested
        *parents, name = path.split("/")
        for parent in parents:
            leaf = leaf.setdefault(parent, {})
        leaf[name] = value
    return nested


def loud_params(shapes: dict[str, tuple[int, ...]], seed: int) -> port.Params:
    """Random weights under which a wrong GELU or epsilon shows.

    What writes to the residual stream is small, so that an epsilon counts beside its variance;
    what reads from it is large, so that the MLP works where exact and tanh GELU differ.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in sorted(shapes.items()):
        gain = 2.0 if path.split("/")[-2:-1] in (["qkv"], ["up"]) else 0.03
        if path.endswith("kernel"):
            value = gain * rng.normal(size=shape) / np.sqrt(shape[-2])
        elif path.endswith("scale"):
            value = 1 + 0.3 * rng.normal(size=shape)
        else:
            value = 0.03 * rng.normal(size=shape)
        params[path] = value.astype(np.float32)
    return nest(params)


@pytest.fixture(scope="session")
def write_vit() -> Callable[..., Path]:
    """Writes a random tiny Vision Transformer in timm's format: `write_vit(folder, pool=...)`."""

    def write(folder: Path, *, pool: str = "token", seed: int = 0, **model_args: Any) -> Path:
        config = timm_config(pool, **model_args)
        published = configs.read_config(config, {})
        spec, form = published.spec, families.formats()[published.form]
        params = loud_params(abstract_module(spec)[1], seed)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        tensors = port.export_params(form, spec, params)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder

    return write


@pytest.fixture(scope="session")
def vit_folder(write_vit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny Vision Transformer; not to be changed."""
    return write_vit(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture
def vit_copy(write_vit: Callable[..., Path], tmp_path: Path) -> Path:
    """One that a test may change."""
    return write_vit(tmp_path / "tiny")


@pytest.fixture(scope="session")
def vit(write_vit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A smaller one for images of 8 px, with 16 features."""
    folder = tmp_path_factory.mktemp("backbones") / "smaller"
    return load(write_vit(folder, img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2))


@pytest.fixture(scope="session")
def colours() -> ArraySplit:
    """Twelve images of 8 px, two classes that a linear head tells apart: reddish and bluish."""
    rng = np.random.default_rng(0)
    labels = np.arange(12, dtype=np.int32) % 2
    images = rng.integers(0, 120, (12, 8, 8, 3))
    images[labels == 0, ..., 0] += 130
    images[labels == 1, ..., 2] += 130
    return ArraySplit(images.astype(np.uint8), labels)


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, *arguments: str) -> Path:
    """A run that the first to ask for it makes for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    workdir, made = folder / "runs" / name, folder / f"{name}.made"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            assert start(QUICK, *arguments, workdir=workdir) == 0
            made.touch()
    return workdir


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick run; not to be changed."""
    return _once(tmp_path_factory, "quick")


@pytest.fixture(scope="session")
def longer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same distillation with two more steps, made in one go; not to be changed."""
    more = ("--config.steps=8", "--config.stages=distill")
    return _once(tmp_path_factory, "longer", *more)


@pytest.fixture(scope="session")
def longer(longer_run: Path) -> np.ndarray:
    """The images of that."""
    return lgm_jax.load_distilled(longer_run)[0]


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished quick run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random photos, 6 of each of 2 classes; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A run folder made by hand, finished, of four classes, with its page; not to be changed."""
    folder = tmp_path_factory.mktemp("reported") / "first"
    folder = write_run(folder, groups={"left": 90.0, "right": 7.0})
    assert write_page(folder) == 0
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser; imported only where there may be one."""
    from tests import browsing

    with browsing.start_browser() as found:
        yield found


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of runs made by hand, for a browser; not to be changed."""
    from tests import browsing

    folder = tmp_path_factory.mktemp("pages")
    browsing.make_pages(folder)
    return folder


@pytest.fixture
def opened(browser: Any, pages: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page: `opened("one/report.html")`."""
    from tests import browsing

    with browsing.opening(browser, pages) as open_page:
        yield open_page


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to be a later process on another machine."""
    monkeypatch.setattr(runs, "provenance", lambda: {"commit": "later"})
