"""The next commands and code for a reader, from the command of the run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from lgm_jax.backbones import specs
from lgm_jax.report.view import RunView

_SHARE = "--config.experiment.share"

# Names of classes that a comment has room for.
_FEW = 2


def describe_next_steps(run: RunView) -> dict[str, Any]:
    """Returns the next commands and code for a reader."""
    command = run.config.get("command")
    where, several = folder(command, run.name), makes_several(command)
    other = "runs/another" if command and not several else "ANOTHER_RUN"
    compare = f"python -m lgm_jax.report {shlex.quote(where)} {other} --out=compare.html"
    if command and not several:
        seed = int(run.settings.get("seed") or 0) + 1
        again = changed(command, {"--config.seed": seed, "--workdir": other})
        compare = f"{again}\n{compare}"
    return {
        "command": command,
        "where": where,
        # Runs that its experiment shared are made again, too.
        "again": changed(command, {_SHARE: None, "--workdir": "runs/again"}) if command else None,
        "experiment": several,
        "load": load(run, where),
        "compare": compare,
    }


def changed(command: str, flags: Mapping[str, str | int | None]) -> str:
    """Changes values of some flags of a command; a flag of `None` is left out."""
    words = [word for word in shlex.split(command) if word.partition("=")[0] not in flags]
    new = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return shlex.join(words + new)


def makes_several(command: str | None) -> bool:
    """Returns whether a command starts an experiment, which has several runs."""
    # They show runs by means of this package.
    from lgm_jax import experiments

    flags = _flags(command)
    config = PurePosixPath(flags.get("--config", "").partition(":")[0])
    return (
        config.parent.name == "experiments"
        # By its bare name, or from a folder that is not shown.
        or config.stem in experiments.SWEEPS
        or any(name.startswith("--config.experiment.") for name in flags)
    )


def folder(command: str | None, name: str) -> str:
    """Returns a run's folder as it would be typed; its name may differ from the command's."""
    flags = _flags(command)
    typed = flags.get("--workdir", name)
    if makes_several(command):
        where = f"{flags.get(_SHARE) or typed}/runs/{name}"
    else:
        where = typed if PurePosixPath(typed).name == name else name
    # Not to be taken for a flag.
    return f"./{where}" if where[:1] == "-" else where


def load(run: RunView, where: str) -> str:
    """Returns Python code that loads the images and, where they fit it, applies the backbone."""
    side = run.side
    lines = [
        "import lgm_jax",
        "",
        f"images, labels, class_names = lgm_jax.load_distilled({where!r})",
    ]
    if run.num_images and side:
        lines.append(f"# images: float32 ({run.num_images}, {side}, {side}, 3)")
        lines.append("#   in [0, 1], not normalised")
        lines.append(f"# labels: int32 ({run.num_images},)")
    if run.class_names:
        more = ", ..." if len(run.class_names) > _FEW else ""
        lines.append(f"# class_names: [{', '.join(map(repr, run.class_names[:_FEW]))}{more}]")
    if run.soft:
        lines.append("# soft labels: lgm_jax.distilled.read_distilled(...).probabilities")
    name = next(iter(run.backbones), "")
    entry = specs.NAMES.get(name)
    if entry is None or side is None or side < entry.resolution:
        return "\n".join(lines)
    start = (side - entry.resolution) // 2
    middle = f"{start}:{start + entry.resolution}"
    crop = f"[:, {middle}, {middle}]" if side > entry.resolution else ""
    return "\n".join(
        [
            "import jax",
            *lines[:1],
            "from lgm_jax import backbones",
            *lines[1:],
            "",
            f"backbone = backbones.load({name!r})",
            f"inputs = jax.numpy.asarray(images{crop})",
            "features = backbone.apply(backbone.params, inputs)",
            f"# features: float32 ({run.num_images or 'n'}, {entry.spec.feature_dim})",
        ]
    )


def _flags(command: str | None) -> dict[str, str]:
    """Returns the words of a command by what stands before their first `=`."""
    return {word.partition("=")[0]: word.partition("=")[2] for word in shlex.split(command or "")}
