"""Distil a data set for a frozen backbone: `python launch.py --config=FILE --workdir=FOLDER`."""

from __future__ import annotations

import sys

from lgm_jax import huge_pages, terminal

if __name__ == "__main__":
    terminal.prepare()
    # Before the other imports, which take a second or two: the program starts again.
    huge_pages.start_again()
    terminal.greet(sys.argv)

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import _files, common
from lgm_jax import (
    determinism,
    experiments,
    hosts,
    plan_flags,
    platforms,
    plugins,
    public,
    tracking,
)
from lgm_jax import meeting as meetings
from lgm_jax.data import cache
from lgm_jax.errors import OUT_OF_MEMORY, UserError, explain_refusal, find_full, unknown_name
from lgm_jax.interrupts import CTRL_C, INTERRUPTS, PIPE, Interrupted
from lgm_jax.session import Session
from lgm_jax.settings import split_list

USAGE = """\
usage: python launch.py --config=FILE --workdir=FOLDER [--config.KEY=VALUE ...] [--overwrite]
       python -m lgm_jax ... the same, from any folder

Distils a labelled image data set into a few synthetic images per class, for a frozen backbone,
and evaluates them. Started again, it continues where it stopped and repeats nothing.

  --config=FILE[:ARG]   a recipe, for example configs/quickstart.py, or by its name alone; from any
                        folder; a recipe may take ARG,
                        quick to see in a few steps that it runs (docs/recipes.md); or an
                        experiment of many runs, such as configs/experiments/table2.py:embedded
  --workdir=FOLDER      the folder for all results; created if it does not exist
  --overwrite           throw away another distillation in FOLDER
  --plan                print the cost of a step, and stop: FLOPs, memory, exchange, microbatches;
                        for --plan_devices=1 with --plan_memory=80 GB, --plan_tflops=PEAK and a
                        line of --plan_bandwidth=GB/s to the others each; or for
                        --plan_topology=v5e:2x4, h100:8 or the like, by their compiler
  --profile             write a trace of a few steps to FOLDER/profile, for ui.perfetto.dev; with
                        --config.profile=N, of N
  --distributed=WHERE   one of several processes that share the work, each started with the same
                        command: auto where JAX finds the others by itself (Slurm, Open MPI, GKE,
                        TPU), or HOST:PORT of process 0 [off]; see docs/scaling.md
  --num_processes=P     with HOST:PORT: how many processes there are
  --process_id=I        with HOST:PORT: which one this is, from 0 to P - 1
  --config.KEY=VALUE    change one key of the recipe; VALUE may be None where the default is unset
  --help                this text

exit codes: 0 done; 2 bad input (one line that starts with "error:"); 75 interrupted by SIGTERM,
SIGUSR1 or SIGHUP, 130 by Ctrl-C and 141 by a closed pipe of the output, all after saving: start
again to continue; 134 another process of the same run died: start all again; others are bugs

keys, with the default of configs/common.py (a recipe may have another):
"""

_FLAGS = ("config", "workdir", "distributed", "num_processes", "process_id", "overwrite")

# Flags that the recorded command does not repeat.
_OF_ONE_START = ("overwrite", "distributed", "num_processes", "process_id", "config.stages")

# The keys that the memory of each stage grows with, beside the microbatch of a distillation.
_LARGE = {
    "probe": "config.probe.batch, config.probe.views or config.probe.runs",
    "baselines": "config.probe.batch, config.probe.views or config.probe.runs",
    "report": "config.images.resolution or config.ipc",
}


def main(argv: Sequence[str]) -> int:
    """Runs the stages that the command line asks for; bad input ends in one line and code 2."""
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(USAGE + _describe_keys())
        return 0
    try:
        argv = ["--config.profile=3" if word == "--profile" else word for word in argv]
        planned, argv = plan_flags.take(argv)
        if planned is not None:
            print_plan(argv, planned)
            return 0
        config, workdir, overwrite, meeting = parse(argv)
        if config.deterministic:
            os.environ["XLA_FLAGS"] = determinism.add_flags(os.environ.get("XLA_FLAGS", ""))
        with hosts.joined(meeting), INTERRUPTS.handled():
            run(config, workdir, overwrite, recorded_command(argv))
    except UserError as error:
        return hosts.leave(2, f"error: {error}".replace("\n", " "))
    except Interrupted as interruption:
        # Not after a closed pipe, as of `head`.
        line = f"interrupted by {interruption}: start again to continue"
        code = interruption.exit_code
        return hosts.leave(code, None if code == PIPE else line)
    except KeyboardInterrupt:
        # Before the run began.
        return hosts.leave(CTRL_C, None)
    except Exception as error:
        refusal = explain_refusal(error)
        if refusal is not None:
            return hosts.leave(2, f"error: {refusal}".replace("\n", " "))
        if hosts.count() == 1:
            raise
        if hosts.tells_of_death(error):
            reason = str(error).split("\n")[0]
            line = f"error: another process of this run died: start all again ({reason})"
            return hosts.leave(hosts.LOST, line)
        # Otherwise the others would wait for this one.
        traceback.print_exc()
        return hosts.leave(1, None)
    return 0


def parse(
    argv: Sequence[str], *, writes: bool = True
) -> tuple[ConfigDict, str, bool, meetings.Meeting | None]:
    """Reads the command line.

    Args:
        argv: The command line.
        writes: Whether a workdir must be named.

    Returns:
        The checked config, the workdir, whether to overwrite, and the meeting of several
        processes.

    Raises:
        UserError: If the command line or the config is wrong.
    """
    given = _read_arguments(argv[1:])
    config = _load_config(*_files.find(given.get("config") or ""))
    with config.unlocked():
        for name, text in given.items():
            if name.startswith("config."):
                _set_key(config, name.removeprefix("config."), text)
    if experiments.SECTION in config:
        experiments.find(config)
        common.check(experiments.without_section(config))
    else:
        common.check(config)
    workdir, where = given.get("workdir") or "", given.get("distributed") or "off"
    if writes and not workdir:
        raise UserError("no workdir: add --workdir=runs/NAME")
    processes = [
        _convert(f"--{name}", given[name], int) if name in given else None
        for name in ("num_processes", "process_id")
    ]
    meeting = meetings.read(where, *processes)
    if meeting is not None:
        settings = public.settings(common.flatten(config))
        meeting = dataclasses.replace(meeting, settings=settings)
    overwrite = _convert("--overwrite", given.get("overwrite", "False"), bool)
    return config, workdir, overwrite, meeting


def _read_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Returns the texts of flags by name without dashes; of two of one name, the last counts."""
    given: dict[str, str] = {}
    left = list(arguments)
    while left:
        flag, equals, text = left.pop(0).partition("=")
        if flag[:1] != "-":
            raise UserError(f"{flag!r} is not a flag; see --help")
        name = flag.lstrip("-")
        if name == "nooverwrite":
            name, equals, text = "overwrite", "=", "False"
        key = name.removeprefix("config.")
        # An experiment's own keys are known once its config is loaded.
        of_experiment = key.startswith(f"{experiments.SECTION}.")
        if key == name and name not in _FLAGS:
            raise unknown_name("flag", flag, [f"--{each}" for each in (*_FLAGS, "help")])
        if key != name and not (key in common.KEYS or common.is_option(key) or of_experiment):
            raise unknown_name("config key", key, list(common.KEYS), "see --help; keys")
        if not equals and left and not re.match("-+[a-z]", left[0]):
            text = left.pop(0)
        elif not equals:
            switch = key in common.KEYS and isinstance(common.KEYS[key].default, bool)
            if not switch and name != "overwrite":
                raise UserError(f"{flag} has no value")
            text = "True"
        given[name] = text
    return given


def _load_config(path: pathlib.Path, arg: str | None) -> ConfigDict:
    """Returns the config of a file, which is Python and may raise anything."""
    spec: Any = importlib.util.spec_from_file_location("lgm_jax_recipe", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([] if arg is None else [arg]))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the config file cannot be loaded: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError("the config file's get_config() returns no ConfigDict")
    return config


def _set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets a key to the value that a text stands for."""
    *sections, leaf = key.split(".")
    default = common.KEYS[key].default if key in common.KEYS else None
    optional = isinstance(default, type)
    try:
        section = functools.reduce(getattr, sections, config)
        if common.is_option(key):
            section[leaf] = _literal(text)
        elif optional and text in ("", "None"):
            section[leaf] = None
        elif default is not None and text == "None":
            if default != "":
                raise UserError(f"--config.{key} cannot be unset: its default is {default!r}")
            section[leaf] = ""
        else:
            section[leaf] = _convert(f"--config.{key}", text, section.get_type(leaf))
    except (AttributeError, KeyError) as error:
        raise UserError(f"config.{key} is not for this config: see its file") from error


def _convert(flag: str, text: str, kind: type) -> Any:
    """Returns a text as a value of a type."""
    try:
        if kind is not bool:
            return kind(text)
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except (KeyError, ValueError) as error:
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{flag} must be {wanted}, not {text!r}") from error


def print_plan(argv: Sequence[str], values: Mapping[str, str]) -> None:
    """Prints the plan of a config, for the values of flags that `plan_flags.read` takes."""
    config, *_ = parse(argv, writes=False)
    describe = plan_flags.read(values)
    if experiments.SECTION not in config:
        print(describe(config))
        return
    planned = experiments.planned_configs(config)
    for each in planned.values():
        common.check(each)
    for names, each in experiments.by_step(planned).items():
        # The plan may take a while.
        print(names, flush=True)
        print("distils nothing" if each is None else describe(each), end="\n\n", flush=True)


def recorded_command(argv: Sequence[str]) -> str:
    """Returns the command line as a run records it, to repeat it.

    Flags of one start are left out: the stages, `--overwrite`, and the meeting of processes.
    """
    given = _read_arguments(argv[1:])
    words = [f"--{name}={text}" for name, text in given.items() if name not in _OF_ONE_START]
    as_module = pathlib.Path(argv[0]).match("lgm_jax/recipes/launch.py")
    return shlex.join(["python", *(["-m", "lgm_jax"] if as_module else ["launch.py"]), *words])


def run(config: ConfigDict, workdir: str, overwrite: bool, command: str | None = None) -> None:
    """Starts a run, or all those of an experiment, with the command line for its record.

    Raises:
        UserError: For bad input, and without enough memory.
    """
    from lgm_jax.checkpoints import quiet_storage

    quiet_storage()
    platforms.start()
    if jax.process_count() != hosts.count():
        raise UserError(
            f"JAX sees {jax.process_count()} processes here: add --distributed=auto to each"
        )
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        compiled = cache.compiled()
        if compiled is not None:
            jax.config.update("jax_compilation_cache_dir", str(compiled))
    tracking.check_installed(split_list(config.track))
    start = functools.partial(run_stages, overwrite=overwrite, command=command)
    if experiments.SECTION in config:
        experiments.run(config, workdir, start, common.check, command)
    else:
        start(config, workdir)


def run_stages(
    config: ConfigDict,
    workdir: str,
    then: Callable[[Session], Any] = lambda session: None,
    *,
    overwrite: bool,
    command: str | None = None,
) -> Any:
    """Runs the stages that a config names; returns the result of `then(session)`."""
    from lgm_jax import stages
    from lgm_jax.opening import open_session

    changed = common.changed(config)
    session = open_session(config, workdir, overwrite=overwrite, command=command, changed=changed)
    if hosts.is_first():
        print(session.describe(), flush=True)
    named = split_list(config.stages)
    own = [name for name in named if name not in common.STAGES]
    *first, last = common.STAGES
    with contextlib.closing(session.run):
        for stage in filter(named.__contains__, [*first, *own, last]):
            try:
                plugins.resolve("stage", stage, stages.STAGES)(session)
            except Exception as error:
                full = find_full(error)
                if full is not None:
                    where = os.path.dirname(full.where) if full.where else workdir
                    name = f"workdir {workdir}" if where.startswith(workdir) else where
                    raise UserError(
                        f"no space is left for {name} ({full.message}): make some, and start again "
                        "to continue from the last checkpoint"
                    ) from error
                if isinstance(error, jax.errors.JaxRuntimeError) and OUT_OF_MEMORY in str(error):
                    advice = _LARGE.get(stage) or _microbatch(session)
                    raise UserError(f"out of memory in stage {stage}: lower {advice}") from error
                raise
        return then(session)


def _microbatch(session: Session) -> str:
    """The key of how many views are in a backbone at a time, with one that is worth a try."""
    size = session.run.last_process("distill").get("microbatch", 1)
    if size == 1:
        return "config.images.resolution: one view at a time does not fit"
    return f"config.microbatch, which was {size}: start again with --config.microbatch={size // 2}"


def _literal(text: str) -> Any:
    """Returns a Python literal, such as a number, a truth value or a list, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _describe_keys() -> str:
    width = max(map(len, common.KEYS))
    lines = []
    for name, key in common.KEYS.items():
        default = "unset" if isinstance(key.default, type) else repr(key.default)
        lines.append(f"  {name:<{width}}  {key.help} [{default}]")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(terminal.run(main, sys.argv))
