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
import os
import pathlib
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import _files, common
from lgm_jax import determinism, experiments, hosts, plan_flags, public
from lgm_jax import meeting as meetings
from lgm_jax.errors import (
    OUT_OF_MEMORY,
    UserError,
    explain_refusal,
    find_full,
    find_user_error,
    unknown_name,
)
from lgm_jax.interrupts import CTRL_C, INTERRUPTS, PIPE, Interrupted
from lgm_jax.session import Session

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

_VALUED = ("config", "workdir", "distributed", "num_processes", "process_id")
_FLAGS = (*_VALUED, "overwrite", "nooverwrite")

# Flags that the recorded command does not repeat.
_OF_ONE_START = (
    *("overwrite", "nooverwrite", "distributed", "num_processes", "process_id"),
    "config.stages",
)

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
    # ml_collections needs the config before its overrides.
    argv = [argv[0], *sorted(_join(argv[1:]), key=lambda a: a.lstrip("-")[:7] != "config=")]
    _check_names(argv)
    argv, given = _find_config(argv)
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "recipe", flag_values=values, sys_argv=list(argv)
    )
    workdir = flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    overwrite = flags.DEFINE_bool("overwrite", False, "start anew", flag_values=values)
    where = flags.DEFINE_string("distributed", "off", "where to meet", flag_values=values)
    processes = [
        flags.DEFINE_integer(name, None, "of several", flag_values=values)
        for name in ("num_processes", "process_id")
    ]
    rest = _read_flags(values, argv)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; see --help")
    config = config_flag.value
    if not isinstance(config, ConfigDict):
        raise UserError("the config file's get_config() returns no ConfigDict")
    with config.unlocked():
        config.update_from_flattened_dict(given)
    if experiments.SECTION in config:
        experiments.find(config)
        common.check(experiments.without_section(config))
    else:
        common.check(config)
    if writes and not workdir.value:
        raise UserError("no workdir: add --workdir=runs/NAME")
    meeting = meetings.read(where.value, *(flag.value for flag in processes))
    if meeting is not None:
        settings = public.settings(common.flatten(config))
        meeting = dataclasses.replace(meeting, settings=settings)
    return config, workdir.value or "", overwrite.value, meeting


def _read_flags(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses flags, and so loads the config; returns the other arguments."""
    try:
        return values(argv)
    # A config file is Python, and may raise anything.
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is not None or isinstance(error, flags.Error):
            raise UserError(str(user_error or _reason(error))) from error
        reason = f"{type(error).__name__}: {error}"
        named = [a.partition("=")[0] for a in argv if f"config.{experiments.SECTION}." in a]
        if named and isinstance(error, AttributeError | KeyError):
            raise UserError(f"{' or '.join(named)} is not for this config: see its file") from error
        raise UserError(f"the config file cannot be loaded: {reason}") from error


def print_plan(argv: Sequence[str], values: Mapping[str, str]) -> None:
    """Prints the plan of a config.

    Args:
        argv: The command line without the flags of the plan.
        values: Values of these flags; see `plan_flags.read`.

    Raises:
        UserError: For bad input.
    """
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
    words = []
    dropped = False
    for argument in _join(argv[1:]):
        # An argument without a dash is the value of the flag before it.
        if argument[:1] == "-":
            dropped = argument.partition("=")[0].lstrip("-") in _OF_ONE_START
        if not dropped:
            words.append(argument)
    as_module = pathlib.Path(argv[0]).match("lgm_jax/recipes/launch.py")
    return shlex.join(["python", *(["-m", "lgm_jax"] if as_module else ["launch.py"]), *words])


def run(config: ConfigDict, workdir: str, overwrite: bool, command: str | None = None) -> None:
    """Starts a run, or all those of an experiment.

    Args:
        config: The config.
        workdir: The run folder.
        overwrite: Whether another distillation in it may be thrown away.
        command: The command line, for the record.

    Raises:
        UserError: For bad input, and without enough memory.
    """
    import jax

    from lgm_jax import platforms, tracking
    from lgm_jax.checkpoints import quiet_storage
    from lgm_jax.data import cache
    from lgm_jax.settings import split_list

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
    if experiments.SECTION not in config:
        run_stages(config, workdir, overwrite, command)
        return

    def start(config: ConfigDict, folder: str, then: Callable[[Session], Any]) -> Any:
        return run_stages(config, folder, overwrite, command, then)

    experiments.run(config, workdir, start, common.check, command)


def run_stages(
    config: ConfigDict,
    workdir: str,
    overwrite: bool,
    command: str | None = None,
    then: Callable[[Session], Any] = lambda session: None,
) -> Any:
    """Runs the stages that a config names; returns the result of `then(session)`.

    Raises:
        UserError: As for `run`.
    """
    import jax

    from lgm_jax import plugins, stages
    from lgm_jax.opening import open_session
    from lgm_jax.settings import split_list

    session = open_session(
        config,
        workdir,
        overwrite=overwrite,
        command=command,
        changed=common.changed(config),
    )
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
                    inside = pathlib.PurePath(where).is_relative_to(workdir)
                    name = f"workdir {workdir}" if inside else where
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


def _join(arguments: Sequence[str]) -> list[str]:
    """Joins `--config FILE`, `--config.KEY VALUE` and the like into one argument each."""
    joined: list[str] = []
    for argument in arguments:
        flag = joined[-1].lstrip("-") if joined else ""
        valued = flag in _VALUED or (flag[:7] == "config." and "=" not in flag)
        if valued and argument[:1] != "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _reason(error: Exception) -> str:
    """Describes an error in one line, without the traceback that ml_collections includes."""
    lines = str(error).strip().split("\n")
    frames = [i for i, line in enumerate(lines) if line.startswith("  ")]
    if frames:
        return f"the config file cannot be loaded: {' '.join(lines[frames[-1] + 1 :])}"
    return f"cannot read the command line: {' '.join(lines)}"


def _check_names(argv: Sequence[str]) -> None:
    """Refuses config keys and flags that do not exist."""
    arguments = [a.lstrip("-").partition("=") for a in argv[1:] if a.startswith("-")]
    for name, _, _ in arguments:
        key = name.removeprefix("config.")
        # An experiment's own keys are known once its config is loaded.
        of_experiment = key.startswith(f"{experiments.SECTION}.")
        known = key in common.KEYS or common.is_option(key)
        if name.startswith("config.") and not known and not of_experiment:
            raise unknown_name("config key", key, list(common.KEYS), "see --help; keys")
        # A negative number is the value of the flag before it; absl's own flags are refused.
        if not name.startswith("config.") and name[:1].isalpha() and name not in _FLAGS:
            flags_ = [f"--{flag}" for flag in (*_VALUED, "overwrite", "help")]
            raise unknown_name("flag", f"--{name}", flags_)


def _find_config(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the command line with the config's path, and the values of keys that absl cannot set.

    Raises:
        UserError: If there is no such config, or a key cannot be unset.
    """
    rest: list[str] = []
    values: dict[str, Any] = {}
    config = ""
    for argument in argv[1:]:
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-")
        dotted = name.removeprefix("config.")
        key = common.KEYS.get(dotted) if dotted != name else None
        optional = key is not None and isinstance(key.default, type)
        if name == "config":
            config = value
        elif equals and common.is_option(dotted):
            values[dotted] = _literal(value)
        elif key is not None and equals and (value == "None" or (optional and not value)):
            if not optional and key.default != "":
                raise UserError(f"{flag} cannot be unset: its default is {key.default!r}")
            values[dotted] = None if optional else ""
        else:
            # Of two values, the last counts.
            values.pop(dotted, None)
            rest.append(argument)
    return [argv[0], f"--config={_files.find(config)}", *rest], values


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
