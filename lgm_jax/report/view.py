"""A run folder, read for a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lgm_jax import paths, public, runs
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.report import timelapse
from lgm_jax.report.gallery import DISTILLED, Gallery, load_gallery, make_gallery


@dataclasses.dataclass(frozen=True)
class RunView:
    """The content of a run folder that a page shows.

    Attributes:
        path: The folder.
        config: `config.json`, with settings and command as others may see them.
        results: `results.json`, unless the run is unfinished.
        losses: Step and loss of each line of `metrics.jsonl`, up to the steps that are shown.
        made_by: Records of the processes that distilled.
        finished: The day on which they finished, if that is known.
        fingerprints: Fingerprints of the evaluation backbones, by their names in the results.
        gallery: Pictures, if there are distilled images.
        sheets: Contact sheets along the way.
        step: The update that an unfinished run has reached.
    """

    path: epath.Path
    config: Mapping[str, Any]
    results: Mapping[str, Any] | None
    losses: Sequence[tuple[int, float]]
    made_by: Sequence[Mapping[str, Any]]
    gallery: Gallery | None
    sheets: Sequence[timelapse.Sheet]
    step: int | None = None
    finished: str | None = None
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return paths.name(self.path)

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.config.get("config", {})

    @property
    def backbones(self) -> list[str]:
        """What the images were distilled against; none if nothing was distilled here."""
        if self.results is None:
            return [name for name in str(self.settings.get("backbone.name", "")).split(",") if name]
        # Runs of real images alone name what they would distil against, too.
        distilled = self.results.get("steps") is not None
        return list(self.results.get("backbones", [])) if distilled else []

    @property
    def title(self) -> str:
        """What tells the run from others: its backbones, as a rule."""
        return " + ".join(self.backbones) or self.name

    @property
    def side(self) -> int | None:
        """Side of the distilled images in pixels, if it is known."""
        if self.gallery is None or self.gallery.side is not None:
            return self.gallery.side if self.gallery else None
        configured = self.settings.get("images.resolution")
        return int(configured) if configured else None


def read_run(
    folder: epath.PathLike, gallery: Gallery | None = None, step: int | None = None
) -> RunView:
    """Reads a run folder; `~` is expanded.

    Args:
        folder: The folder.
        gallery: Pictures to show in place of those that the folder holds.
        step: The update that a run has reached that still distils. Results that it left in the
            folder before it went on to more steps are then not shown.

    Raises:
        UserError: If it is no run's folder, or a file in it is damaged.
    """
    path, config, stages, results = runs.read_folder(folder)
    config = {**config, "config": public.settings(config.get("config", {}))}
    if config.get("command"):
        config["command"] = public.command(config["command"])
    if step is not None:
        results = None
    record = stages.get("distill", {})
    made_by = runs.contributors(record) if results is None else record.get("made_by", [])
    if gallery is None and (path / runs.GALLERY).exists():
        gallery = load_gallery(path / runs.GALLERY)
    if gallery is None and (path / runs.DISTILLED / ARRAYS).exists():
        distilled = read_distilled(str(path))
        gallery = make_gallery(distilled.images, distilled.labels, distilled.class_names)
    losses = _read_losses(path / runs.METRICS)
    # The file of a run that goes on, or lost its checkpoints and went back, has later steps too.
    last = step if results is None else results.get("steps")
    if last is not None:
        losses = [point for point in losses if point[0] <= last]
    sheets = timelapse.find_sheets(path / runs.TIMELAPSE, last)
    if results is None and step is None:
        step = losses[-1][0] if losses else 0
    finished = None if results is None else record.get("finished")
    fingerprints = {
        name.split("/", 2)[2]: record["inputs"]["backbone"]
        for name, record in stages.items()
        if name.startswith(("probe/", "baselines/")) and "backbone" in record.get("inputs", {})
    }
    return RunView(
        path, config, results, losses, made_by, gallery, sheets, step, finished, fingerprints
    )


def match_classes(run: RunView, other: RunView) -> list[int]:
    """Returns the label that each class of a run has in another run.

    Raises:
        UserError: If a run has no distilled images, or if the classes are not the same.
    """
    for view in (run, other):
        if view.gallery is None:
            raise UserError(f"{view.path} has no distilled images yet")
    ours, theirs = (list(view.gallery.class_names) for view in (run, other) if view.gallery)
    if ours == theirs:
        return list(range(len(ours)))
    lacking, foreign = (
        [name for name in a if name not in set(b)] for a, b in ((ours, theirs), (theirs, ours))
    )
    if lacking or foreign or len(ours) != len(theirs):
        differ = [
            f"{what} {', '.join(map(repr, names[:3]))}{' and others' if len(names) > 3 else ''}"
            for what, names in (("lacks", lacking), ("has", foreign))
            if names
        ]
        reason = " and ".join(differ) or f"has {len(theirs)} classes, not {len(ours)}"
        raise UserError(f"{other.path} is of another set of classes than {run.path}: it {reason}")
    if len(set(ours)) < len(ours):
        raise UserError(
            f"{other.path} and {run.path} order their classes differently, and some share a name"
        )
    return [theirs.index(name) for name in ours]


def first_pictures(gallery: Gallery) -> dict[int, bytes]:
    """Returns the first distilled image of each class, by label."""
    pairs = zip(gallery.labels.tolist(), gallery.files[DISTILLED], strict=True)
    return dict(reversed(list(pairs)))


def _read_losses(path: epath.Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(int(line["step"]), float(line["loss"])) for line in lines]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
