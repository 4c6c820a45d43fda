"""Seconds of a distillation step, by part, here and in PyTorch, measured in turns.

    python benchmarks/step.py --architecture=vit_tiny_patch16_224 --classes=10 --copies=3

Contenders are `ours` (streamed real images, which lie on the device), `cached` (ours with cached
real features), `authors` and `tuned` (PyTorch, see `benchmarks/torch_step.py`), all with the same
random weights of one of timm's architectures. Each runs in a process of its own; on a CPU they are
all kept and take turns, on a GPU one follows the other. Prints a table of medians:

    step        the whole step, in ms
    real        features of the real batch alone
    synthetic   gradient of the synthetic images alone: forward, head, backward
    rest        what is left: Adam, and whatever does not overlap
    compile     seconds until the first step is done
    memory      peak, in GB: of the device on a GPU, of the process on a CPU
    TFLOP/s     of the matrix products, recomputation counted, and its share of the `peak`, the
                rate of one large matrix product in the same type; useful is the share without it

`--profile=FOLDER` writes a trace of two of our steps, which https://ui.perfetto.dev opens.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

OURS, THEIRS = ("ours", "cached"), ("authors", "tuned")
PARTS = ("step", "real", "synthetic")
_PROFILED = 2


class Contender(Protocol):
    """A way to make steps, ready to go."""

    facts: dict[str, float]

    def timed(self, part: str) -> float:
        """Seconds of one step, or of a part of it."""

    def peak_memory(self) -> float | None:
        """Most bytes of the device that were in use, where it tells."""

    def profile(self, folder: Path) -> None:
        """Writes a trace of a few steps."""


class Ours:
    """Our step, in jax.jit.

    Args:
        options: The command line.
        folder: The backbone's weights.
        cached: Whether real features are given.
    """

    def __init__(self, options: argparse.Namespace, folder: Path, *, cached: bool):
        import jax
        import numpy as np

        from lgm_jax import backbones, compilation, devices, distill, real, settings
        from lgm_jax.backbones import residuals
        from lgm_jax.data.dataset import ArraySplit
        from lgm_jax.features import Rows
        from lgm_jax.images import Pyramid
        from lgm_jax.programs import Programs

        self._jax = jax
        made = Pyramid(options.resolution)
        task = distill.Distillation(options.classes, made, options.crop, copies=options.copies)
        self.backbone = backbones.load(folder, dtype=options.dtype, resolution=options.crop)
        backbone = self.backbone
        key = jax.random.key(0)
        rng = np.random.default_rng(0)
        labels = np.arange(task.num_views, dtype=np.int32) % task.num_classes
        self._device = jax.local_devices()[0]
        mesh = devices.make_mesh(devices=[self._device])
        kind = settings.RealViews("cached" if cached else "stream")
        recipe = settings.Recipe(task, settings.Updates(), kind)
        programs = Programs(recipe, [backbone], key, len(labels), on_host=False, mesh=mesh)
        size, kept, size_real = programs.choose(options.microbatch)
        programs = dataclasses.replace(programs, residuals=kept)
        if cached:
            rows = Rows([rng.standard_normal((len(labels), backbone.feature_dim), np.float32)], 1)
            self._real = real.cached([rows], labels, task, key, mesh=mesh)
        else:
            shape = (len(labels), *(options.resolution,) * 2, 3)
            self.split = ArraySplit(rng.integers(0, 256, shape, np.uint8), labels)
            self._real = real.streamed(
                [backbone], self.split, task, key, held=True, mesh=mesh, microbatch=size_real
            )
        self.state = distill.init(task, key, mesh=mesh)
        self._params = [devices.put(mesh, backbone.params)]
        started = time.perf_counter()
        self._step = programs.step(size)
        self._number = 0
        self.timed("step")
        self.facts = {"compile": time.perf_counter() - started}
        apply = residuals.keeping(backbone, kept).apply
        loss = distill.make_loss(task, [apply], key, mesh=mesh, microbatch=size)
        gradient = compilation.Program(jax.value_and_grad(loss))
        given = self._real(0)
        self._parts: dict[str, Callable[[], Any]] = {
            "real": lambda: self._real(self._number),
            "synthetic": lambda: gradient(self.state.params, self.state.step, self._params, given),
        }
        counted = programs.flops(size)
        total = sum(counted.values())
        again = sum(found for (part, *_), found in counted.items() if part == "again")
        self.facts |= {
            "microbatches": -(-task.num_views // size),
            "products": float(kept == "products"),
            "flops": total,
            "useful_flops": total - again,
            "peak": _matrix_rate(options.dtype),
        }

    def timed(self, part: str) -> float:
        started = time.perf_counter()
        if part == "step":
            features = self._real(self._number)
            self.state, result = self._step(self.state, self._params, features)
            self._number += 1
        else:
            result = self._parts[part]()
        self._jax.block_until_ready((result, self.state))
        return time.perf_counter() - started

    def peak_memory(self) -> float | None:
        stats = self._device.memory_stats()
        return float(stats["peak_bytes_in_use"]) if stats else None

    def profile(self, folder: Path) -> None:
        with self._jax.profiler.trace(str(folder), create_perfetto_trace=True):
            for _ in range(_PROFILED):
                self.timed("step")


class Theirs:
    """The step in PyTorch; arguments as for `Ours`."""

    def __init__(self, options: argparse.Namespace, folder: Path, *, tuned: bool):
        import torch
        import torch_step
        from safetensors.torch import load_file

        self._torch = torch
        model = torch_step.make_model(options.architecture, options.crop)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        started = time.perf_counter()
        self.step = torch_step.Step(
            model,
            classes=options.classes,
            copies=options.copies,
            resolution=options.resolution,
            crop=options.crop,
            dtype=getattr(torch, options.torch_dtype or options.dtype),
            tuned=tuned,
        )
        self.timed("step")
        self.facts = {"compile": time.perf_counter() - started}
        if tuned:
            self.facts["compiled"] = float(self.step.compiled)

    def timed(self, part: str) -> float:
        return self.step.timed(part)

    def peak_memory(self) -> float | None:
        cuda = self._torch.cuda
        return float(cuda.max_memory_allocated()) if cuda.is_available() else None

    def profile(self, folder: Path) -> None:
        with self._torch.profiler.profile() as trace:
            for _ in range(_PROFILED):
                self.timed("step")
        trace.export_chrome_trace(str(folder / "torch.json"))


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _in_process(write_weights, options, folder)
        turns = options.device == "cpu"
        found: dict[str, dict[str, Any]] = {}
        groups = [options.contenders] if turns else [[name] for name in options.contenders]
        for group in groups:
            with contextlib.ExitStack() as stack:
                asked = {
                    name: stack.enter_context(started(name, options, folder)) for name in group
                }
                fitting = {name: ask for name, ask in asked.items() if ask("facts")}
                found |= {name: {} for name in asked} | measure(fitting, options)
    print_table(found, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--architecture", default="vit_tiny_patch16_224", help="of timm [%(default)s]")
    add("--classes", type=int, default=10, help="synthetic images, one a class [%(default)s]")
    add("--copies", type=int, default=3, help="augmentations of each [%(default)s]")
    add("--resolution", type=int, default=256, help="side of the images [%(default)s]")
    add("--crop", type=int, default=224, help="side of the views [%(default)s]")
    add("--dtype", default="float32", help="of the backbone, or bfloat16 [%(default)s]")
    add("--torch_dtype", help="PyTorch's autocast, or float32 for none [as --dtype]")
    add("--microbatch", type=int, help="views at a time [what fits the memory]")
    add("--rounds", type=int, default=5, help="of which the median is told [%(default)s]")
    add("--device", default="cpu", choices=("cpu", "gpu"), help="take turns or not [%(default)s]")
    add("--profile", type=Path, help="folder for traces")
    add(
        "--contenders",
        default=",".join((*OURS, *THEIRS)),
        type=lambda text: text.split(","),
        help="comma-separated [%(default)s]",
    )
    options = parser.parse_args()
    unknown = set(options.contenders) - {*OURS, *THEIRS}
    if unknown:
        parser.error(f"no contender is named {', '.join(sorted(unknown))}")
    return options


def measure(
    asked: dict[str, Callable[..., Any]], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Medians of parts, and facts, by contender; these take turns."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for part in PARTS:
            for name, ask in asked.items():
                # Others' turns leave caches and memory cold, so the first of two is not counted.
                ask("timed", part)
                seconds.setdefault((name, part), []).append(ask("timed", part))
    found = {}
    for name, ask in asked.items():
        medians = {part: statistics.median(seconds[name, part]) for part in PARTS}
        found[name] = ask("facts") | medians | {"memory": ask("memory")}
        if options.profile:
            ask("profile", options.profile / name)
    return found


def print_table(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """As Markdown."""
    batch = options.classes * options.copies
    print(
        f"{options.architecture} at {options.crop} px, {batch} real and {batch} synthetic views a "
        f"step, {options.dtype}, PyTorch {options.torch_dtype or options.dtype}"
    )
    peak = max((facts.get("peak", 0.0) for facts in found.values()), default=0.0)
    if peak:
        print(f"a large matrix product: {peak / 1e12:.3g} TFLOP/s")
    print("\n| | step | real | synthetic | rest | compile | memory | TFLOP/s | of peak | useful |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, facts in found.items():
        if not facts:
            print(f"| {name} | out of memory |{8 * ' |'}")
            continue
        real = 0.0 if name == "cached" else facts["real"]
        rest = facts["step"] - real - facts["synthetic"]
        cells = [f"{1000 * x:.1f}" for x in (facts["step"], real, facts["synthetic"], rest)]
        cells += [f"{facts['compile']:.1f}", f"{facts['memory'] / 1e9:.2f}"]
        if "flops" in facts:
            rate, useful = (facts[kind] / facts["step"] for kind in ("flops", "useful_flops"))
            cells += [f"{rate / 1e12:.3g}", f"{rate / peak:.0%}", f"{useful / peak:.0%}"]
        else:
            cells += ["", "", ""]
        label = name + (" (not compiled)" if facts.get("compiled") == 0 else "")
        print(f"| {label} | {' | '.join(cells)} |")
    print()
    for ours in filter(found.__contains__, OURS):
        for theirs in filter(found.__contains__, THEIRS):
            if not found[ours] or not found[theirs]:
                continue
            ratio = found[ours]["step"] / found[theirs]["step"]
            print(f"{ours} takes {ratio:.2f}x of {theirs}")


@contextlib.contextmanager
def started(name: str, options: argparse.Namespace, folder: Path) -> Iterator[Callable[..., Any]]:
    """A contender in a process of its own, as a function that asks it something."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, name, options, folder), daemon=True)
    process.start()
    there.close()

    def ask(*question: Any) -> Any:
        here.send(question)
        return here.recv()

    # Only then is it ready, and the next one may load without being in its way.
    ask("facts")
    try:
        yield ask
    finally:
        here.close()
        process.join()


def serve(pipe: Connection, name: str, options: argparse.Namespace, folder: Path) -> None:
    """Answers questions until nobody asks."""
    # Where devices have a memory of their own, what is not in use is left to others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    answer = make_answer(name, options, folder)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(answer(*pipe.recv()))


def make_answer(name: str, options: argparse.Namespace, folder: Path) -> Callable[..., Any]:
    """A contender that has made its first steps, as a function of questions.

    One that the device's memory does not suffice for knows no facts.
    """
    contender: Contender
    try:
        if name in OURS:
            contender = Ours(options, folder, cached=name == "cached")
        else:
            contender = Theirs(options, folder, tuned=name == "tuned")
        for part in PARTS:
            contender.timed(part)
    except (RuntimeError, MemoryError) as error:
        # XLA's word, and PyTorch's.
        if not any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        return lambda *_: {}
    return answering(contender)


def answering(contender: Contender) -> Callable[..., Any]:
    """A contender as a function of questions."""

    def answer(question: str, *rest: Any) -> Any:
        if question == "timed":
            return contender.timed(*rest)
        if question == "facts":
            return contender.facts
        if question == "memory":
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return contender.peak_memory() or 1024.0 * kilobytes
        rest[0].mkdir(parents=True, exist_ok=True)
        return contender.profile(*rest)

    return answer


def write_weights(options: argparse.Namespace, folder: Path) -> None:
    """Random weights that all contenders load."""
    import torch_step

    model = torch_step.make_model(options.architecture, options.crop)
    torch_step.save(model, options.architecture, options.crop, folder)


def _in_process(function: Callable[..., None], *arguments: Any) -> None:
    """So that this process has neither JAX nor PyTorch, and no threads of theirs."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _matrix_rate(dtype: str) -> float:
    """FLOP a second of a large square matrix product."""
    import jax
    import jax.numpy as jnp

    side = 8192 if jax.default_backend() == "gpu" else 1024
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(matrix, matrix))
    rates = []
    for _ in range(10):
        begun = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        rates.append(2 * side**3 / (time.perf_counter() - begun))
    return max(rates)


if __name__ == "__main__":
    main()
