"""Read a run folder for a page."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lgm_jax import paths, public, runs
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.report import timelapse
from lgm_jax.report.gallery import DISTILLED, Gallery, load_gallery, make_gallery
from lgm_jax.report.judge import is_number


@dataclasses.dataclass(frozen=True)
class RunView:
    """The content of a run folder that a page shows; `None` or empty where it is not known.

    Attributes:
        path: The folder.
        config: `config.json`, with settings and command as others may see them; `shortened` where
            that command lacks folders.
        results: `results.json`; empty while the run is unfinished.
        losses: Step and loss of each line of `metrics.jsonl`, up to the steps that are shown.
        made_by: Records of the processes that distilled.
        gallery: Pictures, if there are distilled images.
        sheets: Contact sheets along the way.
        step: The update that an unfinished run has reached; `None` for a finished one.
        finished: The day on which the images were finished.
        fingerprints: Fingerprints of the evaluation backbones, by their names in the results.
    """

    path: epath.Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
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
    def data(self) -> Mapping[str, Any]:
        """The record of the data set."""
        return self.config.get("data", {})

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The results, or the settings where there are no results yet."""
        return self.results or self.settings

    @property
    def backbones(self) -> list[str]:
        """Names of the backbones distilled against; none if nothing was distilled here."""
        if not self.results:
            return [name for name in str(self.settings.get("backbone.name", "")).split(",") if name]
        # Runs of real images alone name backbones to distil against, too.
        distilled = self.results.get("steps") is not None
        return list(self.results.get("backbones", [])) if distilled else []

    @property
    def title(self) -> str:
        """The backbones, or else the name of the folder."""
        return " + ".join(self.backbones) or self.name

    @property
    def side(self) -> int | None:
        """Side of the distilled images in pixels; galleries of earlier versions lack it."""
        if self.gallery is None:
            return None
        return self.gallery.side or self.settings.get("images.resolution")

    @property
    def counts(self) -> Mapping[str, Any]:
        """Images by split and class."""
        return self.data.get("counts", {})

    @property
    def num_train(self) -> int | None:
        """The number of real images to train on."""
        return self.counts.get("train", {}).get("images")

    @functools.cached_property
    def num_classes(self) -> int:
        """The number of classes. The gallery of an unfinished run may show some of them."""
        named = self.counts.get("train", {}).get("classes", ())
        shown = len(self.gallery.class_names) if self.gallery else 0
        return self.results.get("num_classes") or len(named) or shown

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Names of all classes; empty if some share a name, for the counts then hold fewer."""
        shown = self.gallery.class_names if self.gallery else ()
        for names in (self.counts.get("train", {}).get("classes", ()), shown):
            if len(names) == self.num_classes:
                return list(names)
        return []

    @property
    def num_images(self) -> int | None:
        """The number of distilled images."""
        ipc = self.recorded.get("ipc")
        return ipc * self.num_classes if self.gallery and ipc else None

    @functools.cached_property
    def probes(self) -> dict[str, Mapping[str, Any]]:
        """Accuracies by evaluation backbone; those that the images were made for come first.

        Those that are not a number, which a finding names, are left out.
        """
        numbers = {
            name: {method: entry for method, entry in entries.items() if is_number(entry)}
            for name, entries in self.results.get("probe", {}).items()
        }
        names = sorted(filter(numbers.get, numbers), key=lambda name: name not in self.backbones)
        return {name: numbers[name] for name in names}

    @property
    def first_probe(self) -> Mapping[str, Any]:
        """Accuracies on the first evaluation backbone, by method."""
        return next(iter(self.probes.values()), {})

    @property
    def num_test(self) -> int | None:
        """Images that accuracies were measured on."""
        split = next((entry["split"] for entry in self.first_probe.values()), None)
        return self.results.get("test_images") or self.counts.get(str(split), {}).get("images")

    @property
    def soft(self) -> bool:
        """Whether labels are class probabilities."""
        return (self.results.get("labels") or {}).get("kind") == "soft"


def read_run(
    folder: epath.PathLike, gallery: Gallery | None = None, step: int | None = None
) -> RunView:
    """Reads a run folder; `~` is expanded.

    Args:
        gallery: Pictures to show in place of those that the folder holds.
        step: The update that a still distilling run has reached. Results from before it went on
            to more steps are then not shown.

    Raises:
        UserError: If it is no run's folder, or a file in it is damaged.
    """
    path, config, stages, results = runs.read_folder(folder)
    config = {**config, "config": public.settings(config.get("config", {}))}
    if config.get("command"):
        try:
            typed = shlex.join(shlex.split(config["command"]))
        except ValueError as error:
            raise UserError(f"{path / runs.CONFIG} is damaged: its command: {error}") from error
        config["command"] = public.command(typed)
        config["shortened"] = config["command"] != typed
    results = results if results is not None and step is None else {}
    record = stages.get("distill", {})
    made_by = record.get("made_by", []) if results else runs.contributors(record)
    if gallery is None and (path / runs.GALLERY).exists():
        gallery = load_gallery(path / runs.GALLERY)
    if gallery is None and (path / runs.DISTILLED / ARRAYS).exists():
        distilled = read_distilled(str(path))
        gallery = make_gallery(distilled.images, distilled.labels, distilled.class_names)
    # The file of a run that continues, or lost its checkpoints, has later steps, too.
    last = results.get("steps") if results else step
    lines = [(line["step"], line["loss"]) for line in runs.read_metrics(path)]
    losses = [point for point in lines if last is None or point[0] <= last]
    sheets = timelapse.find_sheets(path / runs.TIMELAPSE, last)
    if not results and step is None:
        step = losses[-1][0] if losses else 0
    finished = record.get("finished") if results else None
    fingerprints = {}
    for stage, record in stages.items():
        kind, *rest = stage.split("/", 2)
        if kind in ("probe", "baselines") and len(rest) == 2:
            entry = results.get("probe", {}).get(rest[1], {}).get(rest[0])
            reached = record.get("result", {}).get("top1_mean")
            # Of another backbone of that name, a record may be left that is not in the results.
            if entry and reached in (None, entry["top1_mean"]):
                fingerprints[rest[1]] = record.get("inputs", {}).get("backbone")
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
    lacking = [name for name in ours if name not in theirs]
    foreign = [name for name in theirs if name not in ours]
    if lacking or foreign:
        differ = [
            f"{verb} {', '.join(map(repr, names[:3]))}{' and others' if len(names) > 3 else ''}"
            for verb, names in (("lacks", lacking), ("has", foreign))
            if names
        ]
        raise UserError(
            f"{other.path} is of another set of classes than {run.path}: it {' and '.join(differ)}"
        )
    if len(set(ours)) < max(len(ours), len(theirs)):
        raise UserError(
            f"{other.path} and {run.path} order their classes differently, and some share a name"
        )
    return [theirs.index(name) for name in ours]


def first_pictures(gallery: Gallery | None, kind: str = DISTILLED) -> dict[int, bytes]:
    """Returns the first picture of each class, by label; none of a kind that is lacking."""
    if gallery is None or kind not in gallery.files:
        return {}
    pairs = zip(gallery.labels.tolist(), gallery.files[kind], strict=True)
    return dict(reversed(list(pairs)))
