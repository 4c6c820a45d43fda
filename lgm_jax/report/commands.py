"""The next commands and code for a reader, from the command of the run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from lgm_jax.backbones import specs
from lgm_jax.report.view import RunView

# Flags whose values are files or folders, unless they are names of backbones.
_PLACES = (
    *("--workdir", "--config", "--config.data.folder", "--config.images.source"),
    *("--config.real.cache", "--config.backbone.name", "--config.eval_backbones"),
    *("--config.experiment.share", "--config.experiment.backbones", "--config.experiment.evaluate"),
)
_SHARE = "--config.experiment.share"

# Names of classes that a comment has room for.
_FEW = 2


BIBTEX = """\
@inproceedings{cazenavette2025dataset,
  title     = {Dataset Distillation for Pre-Trained Self-Supervised Vision Models},
  author    = {Cazenavette, George and Torralba, Antonio and Sitzmann, Vincent},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  url       = {https://arxiv.org/abs/2511.16674}
}"""


def changed(command: str, **flags: str | int) -> str:
    """Changes values of some flags of a command; `__` stands for the dot of a key."""
    values = {f"--{name.replace('__', '.')}": value for name, value in flags.items()}
    words = [word for word in shlex.split(command) if word.partition("=")[0] not in values]
    return shlex.join([*words, *(f"{name}={value}" for name, value in values.items())])


def makes_several(command: str | None) -> bool:
    """Returns whether a command starts an experiment, which has several runs."""
    # They show runs by means of this package.
    from lgm_jax import experiments

    pairs = [word.partition("=")[::2] for word in shlex.split(command or "")]
    return any(
        name.startswith("--config.experiment.")
        or (name == "--config" and path.parent.name == "experiments")
        # By its bare name, or from a folder that is not shown.
        or (name == "--config" and path.name.partition(".")[0] in experiments.SWEEPS)
        for name, value in pairs
        for path in [PurePosixPath(value.partition(":")[0])]
    )


def folder(command: str | None, name: str) -> str:
    """Returns a run's folder as it would be typed.

    Args:
        command: The command that made it.
        name: The folder's name, which may have changed since.
    """
    flags = dict(word.partition("=")[::2] for word in shlex.split(command or ""))
    typed = flags.get("--workdir", name)
    if makes_several(command):
        where = f"{flags.get(_SHARE) or typed}/runs/{name}"
    else:
        where = typed if PurePosixPath(typed).name == name else name
    # Not to be taken for a flag.
    return f"./{where}" if where[:1] == "-" else where


def again(command: str, where: str) -> str:
    """Returns the command that repeats another in a folder of its own.

    Args:
        command: The other command; runs that its experiment shared are made again.
        where: The folder.
    """
    words = [word for word in shlex.split(command) if word.partition("=")[0] != _SHARE]
    return changed(shlex.join(words), workdir=where)


def bare_names(command: str | None) -> list[str]:
    """Returns the files and folders in a command without a path.

    A page shows no more of those elsewhere on the machine, so they may lie anywhere.
    """
    pairs = [word.partition("=")[::2] for word in shlex.split(command or "")]
    values = [item for name, value in pairs if name in _PLACES for item in value.split(",")]
    bare = [item for item in values if item and "/" not in item and item not in specs.NAMES]
    return list(dict.fromkeys(bare))


def load(
    where: str,
    num_images: int | None,
    side: int | None,
    class_names: Sequence[str],
    backbone: str | None,
    *,
    soft: bool,
) -> str:
    """Returns Python code that loads the images and applies the backbone to them.

    Args:
        where: The run folder, as it would be typed.
        num_images: The number of images, if known.
        side: Their side in pixels, if known.
        class_names: Names of the classes, in label order.
        backbone: The backbone that they were distilled for.
        soft: Whether labels were learned along.
    """
    lines = ["import lgm_jax", ""]
    lines += [f"images, labels, class_names = lgm_jax.load_distilled({where!r})"]
    if num_images and side:
        lines.append(f"# images: float32 ({num_images}, {side}, {side}, 3)")
        lines.append("#   in [0, 1], not normalised")
        lines.append(f"# labels: int32 ({num_images},)")
    if class_names:
        some = ", ".join(map(repr, class_names[:_FEW]))
        more = ", ..." if len(class_names) > _FEW else ""
        lines.append(f"# class_names: [{some}{more}]")
    if soft:
        lines.append("# soft labels: lgm_jax.distilled.read_distilled(...).probabilities")
    entry = specs.NAMES.get(backbone or "")
    if entry is None or side is None or side < entry.resolution:
        return "\n".join(lines)
    middle = (side - entry.resolution) // 2
    crop = f"[:, {middle}:{middle + entry.resolution}, {middle}:{middle + entry.resolution}]"
    lines[0] = "import jax\nimport lgm_jax\nfrom lgm_jax import backbones"
    lines += [
        "",
        f"backbone = backbones.load({backbone!r})",
        f"inputs = jax.numpy.asarray(images{crop if side > entry.resolution else ''})",
        "features = backbone.apply(backbone.params, inputs)",
        f"# features: float32 ({num_images or 'n'}, {entry.spec.feature_dim})",
    ]
    return "\n".join(lines)


def describe_next_steps(run: RunView) -> dict[str, Any]:
    """Returns the next commands and code for a reader."""
    command = run.config.get("command")
    where, several = folder(command, run.name), makes_several(command)
    seed = int(run.settings.get("seed") or 0) + 1
    other = "runs/another" if command and not several else "ANOTHER_RUN"
    beside = f"python -m lgm_jax.report {shlex.quote(where)} {other} --out=compare.html"
    return {
        "command": command,
        "bibtex": BIBTEX,
        "where": where,
        "bare": bare_names(command),
        "again": again(command, "runs/again") if command else None,
        "experiment": several,
        "load": load(
            where,
            run.num_images,
            run.side,
            run.class_names,
            next(iter(run.backbones), None),
            soft=run.soft,
        ),
        "compare": f"{changed(command, config__seed=seed, workdir=other)}\n{beside}"
        if command and not several
        else beside,
    }
