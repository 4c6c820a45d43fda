"""The page of a run: `report.html`, from what lies in the run folder.

Up to a hundred classes it is one file, with pictures, style and script inside, so that it can be
sent to a colleague. Beyond, pictures lie in `report/` beside it and load as they are scrolled to:
the page and that folder are all there is to send.
Either way nothing is fetched from anywhere else; a content security policy in the page says so to
the browser too.

Jinja2 is imported only when a page is written. It escapes whatever comes from data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import files, objectives, paths, public, runs
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.images import level_sizes, num_active
from lgm_jax.objectives import OBJECTIVES
from lgm_jax.report import charts, commands, pictures, timelapse, words
from lgm_jax.report.gallery import (
    DISTILLED,
    REALS,
    Gallery,
    load_gallery,
    make_gallery,
    shown,
)
from lgm_jax.report.judge import contradicts, judge
from lgm_jax.report.words import CAPTIONS, TITLES

# Bytes that the timelapse takes of a page that is one file, together with other runs' images, which
# may take half of them; the side of the latter.
_FRAMES_BUDGET, _BESIDE_BUDGET, _BESIDE_SIDE = 2_000_000, 1_000_000, 160

# Thumbnails on the map, and their side.
_THUMBS, _THUMB_SIDE = 100, 48

# Shape of the map, height by width: on a wide screen, and on a narrow one. What lies in it keeps
# clear of its edges.
_SHAPE, _NARROW_SHAPE = 0.56, 1.1
_MARGIN = 0.07

# Thumbnails that have their names beside them, and what they then take of the map's width, sides
# of their boxes on a wide screen and on a narrow one; classes that have colours of their own.
_NAMED, _COLOURED = 24, 20
_BOX, _NARROW_BOX = (0.058, 0.066), (0.135, 0.175)

# Columns of the timelapse on a wide screen, if there are many images.
_MOST_COLUMNS = 12

# Marks of a curve whose labels are this many percent of its width apart are read on a wide screen,
# and on a narrow one.
_ROOM, _NARROW_ROOM = 4.5, 15.0


@dataclasses.dataclass(frozen=True)
class RunView:
    """What a run folder says, for a page.

    Attributes:
        path: The folder.
        config: `config.json`, with settings and command as others may see them.
        results: `results.json`, unless the run is unfinished.
        losses: Step and loss of each line of `metrics.jsonl`, up to the steps that are shown.
        made_by: The processes that distilled.
        finished: The day on which they finished, if that is known.
        fingerprints: Of the evaluation backbones, by what the results call them.
        gallery: Pictures, if there are distilled images.
        sheets: Contact sheets along the way.
        step: Of an unfinished run: where it is.
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


def read_run(
    folder: epath.PathLike, gallery: Gallery | None = None, step: int | None = None
) -> RunView:
    """Reads a run folder; `~` is expanded.

    Args:
        folder: The folder.
        gallery: Pictures to show in place of those that the folder holds.
        step: Where a run is that still distils. What a finished one left in the folder before it
            went on to more steps is then not shown.

    Raises:
        UserError: If it is none, or a file in it is damaged.
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
        found = read_distilled(str(path))
        gallery = make_gallery(found.images, found.labels, found.class_names)
    losses = _read_losses(path / runs.METRICS)
    # A run that goes on, or lost its checkpoints and went back, has those of later steps too.
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


def write_page(run: RunView, beside: Sequence[RunView] = ()) -> epath.Path:
    """Writes `report.html` of a run, and the folder `report/` if it has many classes.

    Args:
        run: The run.
        beside: Runs of the same classes, whose distilled images are shown beside its own.

    Returns:
        The page.

    Raises:
        UserError: If classes differ.
    """
    others = [(other, match_classes(run, other)) for other in beside]
    folder = run.path / runs.REPORT
    gallery = run.gallery
    # What an earlier page left is not this one's.
    if folder.exists():
        folder.rmtree()
    place = Embedded() if gallery is None or gallery.fits_one_file else Beside(folder)
    page = run.path / runs.PAGE
    with files.replacing(page) as temporary:
        files.write_text(temporary, render("run.html", describe(run, others, place)))
    return page


def write_unfinished_page(
    path: epath.Path,
    step: int,
    images: Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    class_names: Sequence[str],
) -> None:
    """Writes the page of a run that is still distilling: current images and losses.

    It shows at most a hundred images, the first of their classes, so that it costs little, and is
    always one file.

    Args:
        path: The run folder.
        step: The updates made.
        images: As they are now.
        labels: Their classes.
        class_names: In label order.
    """
    known, counts = np.unique(labels, return_counts=True)
    used = known[pictures.spread(len(known), pictures.SHEET_IMAGES)]
    members = np.flatnonzero(np.isin(labels, used))
    rows = members[shown(labels[members], pictures.SHEET_IMAGES)]
    own = np.searchsorted(used, labels[rows])
    gallery = make_gallery(images[rows], own, [class_names[label] for label in used])
    # A class has as many as there are, not as are shown.
    gallery = dataclasses.replace(gallery, total=int(counts.max()))
    write_page(read_run(path, gallery, step))


def match_classes(run: RunView, other: RunView) -> list[int]:
    """For each class of a run, the label that it has in another one.

    Raises:
        UserError: If one has no distilled images, or if the classes are not the same.
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


class Embedded:
    """Pictures go into the page itself."""

    lazy = False

    def put(self, kind: str, number: int, webp: bytes) -> str:
        """Takes a picture; gives its address."""
        return pictures.data_uri(webp)


class Beside:
    """Pictures lie in a folder beside the page, and load when they are scrolled to."""

    lazy = True

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def put(self, kind: str, number: int, webp: bytes) -> str:
        """Writes a picture; gives its address."""
        name = f"{kind}/{number:05d}.webp"
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(webp)
        return urllib.parse.quote(f"{self._folder.name}/{name}")


Place = Embedded | Beside


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fills a template of this package; what comes from data is escaped."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lgm_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def unbroken(command: str) -> markupsafe.Markup:
        # Browsers break lines after hyphens, so within a flag.
        parts = re.split(r"(\s+)", command)
        word = markupsafe.Markup("<span>{}</span>")
        return markupsafe.Markup("").join(
            part if not part.strip() else word.format(part) for part in parts
        )

    environment.filters["unbroken"] = unbroken
    environment.filters |= {"percent": percent, "thousands": "{:,}".format, "listed": words.join}
    text = {
        name: markupsafe.Markup(
            (epath.Path(__file__).parent / "templates" / f"page.{name}").read_text()
        )
        for name in ("css", "js")
    }
    return environment.get_template(template).render(**text, **context)


def look() -> str:
    """Changes when the page would look different for the same run."""
    folder = epath.Path(__file__).parent
    files = sorted([*folder.glob("*.py"), *(folder / "templates").iterdir()])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def percent(value: float) -> str:
    """An accuracy in percent, with one decimal."""
    return f"{value:.1f}"


def describe(
    run: RunView, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> dict[str, Any]:
    """All that the template of a run shows."""
    settings, data = run.settings, run.config.get("data", {})
    counts = data.get("counts", {})
    gallery, where = run.gallery, commands.folder(run.config.get("command"), run.name)
    # Of an unfinished run, the gallery may show a part.
    names = list(counts.get("train", {}).get("classes", ()))
    classes = (run.results or {}).get("num_classes") or len(names)
    classes = classes or (len(gallery.class_names) if gallery else 0)
    if len(names) != classes and gallery and len(gallery.class_names) == classes:
        names = list(gallery.class_names)
    # Classes that share a name are counted as one: nobody knows then which is which.
    names = names if len(names) == classes else []
    ipc = (run.results or settings).get("ipc")
    num_images = ipc * classes if gallery and ipc else None
    # First the models that the images were made for.
    found = (run.results or {}).get("probe", {})
    probes = {name: found[name] for name in sorted(found, key=lambda n: n not in run.backbones)}
    main: Mapping[str, Any] = next(iter(probes.values()), {})
    split = next(iter(main.values()))["split"] if main else None
    num_test = (run.results or {}).get("test_images") or counts.get(split, {}).get("images")
    objective = str((run.results or settings).get("objective"))
    about = (run.results or {}).get("about_objective") or {}
    if not about and objective in OBJECTIVES:
        about = objectives.about(OBJECTIVES[objective])
    side = image_side(run)
    steps = (run.results or {}).get("steps") or settings.get("steps")
    soft = ((run.results or {}).get("labels") or {}).get("kind") == "soft"
    loss = describe_losses(
        [(run.name, run.losses)],
        # What is still to come is left free.
        settings.get("steps", 0) if run.results is None else 0,
        describe_growth(settings, side),
    )
    facts, hashes = describe_provenance(run)
    findings = judge(run.results or {}, num_test)
    changed = [name for name in run.config.get("changed", ()) if name in settings]
    return {
        "run": run.name,
        "title": f"{data.get('name', run.name)}{', distilled' if run.backbones else ''}"
        + "".join(f": {finding.title}" for finding in findings[:1]),
        "findings": findings,
        "dataset": data.get("name", ""),
        "about_data": words.about_data(str(data.get("name", ""))),
        "unfinished": run.results is None,
        "step": run.step,
        "steps": steps,
        "seed": settings.get("seed"),
        "image_every": settings.get("image_every"),
        "backbones": run.backbones,
        "about": {name: words.about_backbone(name) for name in (*run.backbones, *probes)},
        "objective": about.get("title"),
        "each_step": about.get("each_step"),
        "loss_is": about.get("loss_is", ""),
        "start": words.STARTS.get(str(settings.get("images.init"))),
        "new_heads": objective == "lgm",
        "soft": soft,
        "finished": run.finished,
        "side": side,
        "ipc": ipc,
        "num_classes": classes,
        "num_images": num_images,
        "num_train": counts.get("train", {}).get("images"),
        "num_test": num_test,
        "cards": describe_cards(gallery, others, place) if gallery else [],
        "per_class": gallery.total if gallery else 0,
        "accuracy": describe_accuracies(probes, run.backbones, classes, num_test),
        "compared": words.compare(main, num_test),
        "doubt": words.doubt(
            main,
            num_test,
            settings.get("seed"),
            made_here=bool(run.backbones),
            repeated=settings.get("probe.runs") != 1,
        )
        if "distilled" in main
        else None,
        "guess": words.guess(classes) if classes else None,
        "groups": [found for found in (describe_groups(*item) for item in probes.items()) if found],
        "learning": [
            found for found in (describe_learning(*item) for item in probes.items()) if found
        ],
        "loss": loss,
        "timelapse": describe_timelapse(
            run, place, _FRAMES_BUDGET - (_BESIDE_BUDGET if others else 0), names, num_images
        ),
        "map": describe_map(gallery, place) if gallery and gallery.map else None,
        "words": words.glossary(list(main), words.gap(main, num_test), has_loss=loss is not None),
        "lazy": place.lazy,
        "provenance": facts,
        "hashes": hashes,
        "changed": {name: json.dumps(settings[name]) for name in changed},
        "settings": {
            name: json.dumps(value) for name, value in settings.items() if name not in changed
        },
        "where": where,
        **describe_next_steps(run, where, num_images, side, names, soft=soft),
    }


def image_side(run: RunView) -> int | None:
    """Side of the distilled images in pixels, if it is known."""
    if run.gallery is None:
        return None
    if run.gallery.side is not None:
        return run.gallery.side
    configured = run.settings.get("images.resolution")
    return int(configured) if configured else None


def describe_next_steps(
    run: RunView,
    where: str,
    num_images: int | None,
    side: int | None,
    class_names: Sequence[str],
    *,
    soft: bool,
) -> dict[str, Any]:
    """Commands and code to go on with.

    Args:
        run: The run.
        where: Its folder, as it would be typed.
        num_images: How many distilled images there are, if known.
        side: Of these, if known.
        class_names: In label order.
        soft: Whether labels were learned along.
    """
    command = run.config.get("command")
    several = commands.makes_several(command)
    backbone = next(iter(run.backbones), None)
    seed = int(run.settings.get("seed") or 0) + 1
    other = "runs/another" if command and not several else "ANOTHER_RUN"
    beside = f"python -m lgm_jax.report {shlex.quote(where)} {other} --out=compare.html"
    return {
        "command": command,
        "bare": commands.bare_names(command),
        "again": commands.anew(command, "runs/again") if command else None,
        "experiment": several,
        "load": commands.load(where, num_images, side, class_names, backbone, soft=soft),
        "compare": f"{commands.changed(command, config__seed=seed, workdir=other)}\n{beside}"
        if command and not several
        else beside,
    }


def describe_cards(
    gallery: Gallery, others: Sequence[tuple[RunView, Sequence[int]]], place: Place
) -> list[dict[str, Any]]:
    """A card per class: its distilled images, real ones, and other runs'."""
    cards: list[dict[str, Any]] = [
        {"name": str(name), "label": label, "rows": []}
        for label, name in enumerate(gallery.class_names)
    ]
    for i, label in enumerate(gallery.labels.tolist()):
        row = {
            "distilled": place.put(DISTILLED, i, gallery.files[DISTILLED][i]),
            "reals": [
                {**said, "src": place.put(kind, i, gallery.files[kind][i])}
                for kind, said in describe_reals(gallery, i)
            ],
            "others": [],
        }
        cards[label]["rows"].append(row)
    for number, (other, labels) in enumerate(others):
        if other.gallery is None:
            continue
        found = first_pictures(other.gallery)
        budget = None if place.lazy else _BESIDE_BUDGET // len(others)
        small = pictures.shrink(list(found.values()), _BESIDE_SIDE, budget)
        first = dict(zip(found, small, strict=True))
        for card, label in zip(cards, labels, strict=True):
            if label in first and card["rows"]:
                src = place.put(f"beside{number}", card["label"], first[label])
                name = f"distilled for {run_title(other)}"
                card["rows"][0]["others"].append({"name": name, "src": src})
    return [card for card in cards if card["rows"]]


def describe_reals(gallery: Gallery, i: int) -> list[tuple[str, dict[str, str]]]:
    """The real pictures beside a distilled one: the first of its kinds, name and description.

    One that is of several kinds is there once.
    """
    kinds: dict[bytes, list[str]] = {}
    for kind in REALS:
        if kind in gallery.files:
            kinds.setdefault(gallery.files[kind][i], []).append(kind)
    found = []
    for same in kinds.values():
        name = words.join([CAPTIONS[kind][0] for kind in same])
        text = CAPTIONS[same[0]][1]
        if len(same) > 1:
            text = f"one real image: {words.join([CAPTIONS[kind][2] for kind in same])}"
        found.append((same[0], {"name": name, "text": text}))
    return found


def first_pictures(gallery: Gallery) -> dict[int, bytes]:
    """The first distilled image of each class."""
    pairs = zip(gallery.labels.tolist(), gallery.files[DISTILLED], strict=True)
    return dict(reversed(list(pairs)))


def run_title(run: RunView) -> str:
    """What tells a run from others: its backbones, as a rule."""
    return " + ".join(run.backbones) or run.name


def describe_accuracies(
    probes: Mapping[str, Mapping[str, Any]],
    made_for: Sequence[str],
    num_classes: int,
    num_test: int | None = None,
) -> list[dict[str, Any]]:
    """Dots with error bars for each evaluation backbone, on one axis, in percent of its width.

    Args:
        probes: Of `results.json`, those that images were made for first.
        made_for: What the images were distilled against.
        num_classes: Number of classes, which says what guessing gives.
        num_test: Images that accuracies were measured on, if known.
    """
    if not probes:
        return []
    guess = words.guess(num_classes)
    spans = {
        name: {
            method: (
                max(0.0, entry["top1_mean"] - (entry["top1_std"] or 0.0)),
                min(100.0, entry["top1_mean"] + (entry["top1_std"] or 0.0)),
            )
            for method, entry in entries.items()
        }
        for name, entries in probes.items()
    }
    every = [span for found in spans.values() for span in found.values()]
    low, high = charts.percent_range([a for a, _ in every], [b for _, b in every], guess)

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    ticks = [tick for tick in charts.ticks(low, high, about=5) if low <= tick <= high]
    charted = []
    for name, entries in probes.items():
        means = {method: entry["top1_mean"] for method, entry in entries.items()}
        has_all = {"distilled", "full"} <= set(means) and means["full"] > 0
        has_all = has_all and not contradicts(entries, num_test)
        charted.append(
            {
                "backbone": name,
                "mine": name in made_for,
                "rows": [
                    {
                        "method": method,
                        "title": title,
                        "mean": means[method],
                        "std": entries[method]["top1_std"],
                        "at": at(means[method]),
                        "low": at(spans[name][method][0]),
                        "high": at(spans[name][method][1]),
                    }
                    for method, title in TITLES.items()
                    if method in entries
                ],
                "means": means,
                "ticks": [(charts.number(tick), at(tick)) for tick in ticks],
                "goal": at(means["full"]) if "full" in means else None,
                "guess": at(guess) if low <= guess <= high else None,
                "gap": words.gap(entries, num_test),
                "share": 100 * means["distilled"] / means["full"] if has_all else None,
                "runs": max(len(entry["top1_runs"]) for entry in entries.values()),
                "split": next(iter(entries.values()))["split"],
                "training": describe_training(entries),
            }
        )
    return charted


def describe_training(entries: Mapping[str, Any]) -> str:
    """How the classifiers of an evaluation backbone were trained, in a sentence or two."""

    def say(entry: Mapping[str, Any]) -> str:
        # What lbfgs has are iterations towards a minimum, of which more change nothing.
        epochs = "" if entry["solver"] == "lbfgs" else f", {entry['epochs']:,} epochs"
        return f"{entry['solver']}{epochs}, augmentation: {entry['augment']}."

    ways = {method: say(entry) for method, entry in entries.items()}
    few = next((way for method, way in ways.items() if method != "full"), None)
    if few is None:
        return f"Classifiers: {ways['full']}"
    all_real = ways.get("full", few)
    return f"Classifiers: {few}" + (
        f" The one on all real images: {all_real}" if all_real != few else ""
    )


def describe_learning(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Curves of the training loss by epoch, of the classifiers that have epochs."""
    curves = [
        (title, [(epoch, loss) for epoch, loss in entries[method].get("loss_curve") or []])
        for method, title in TITLES.items()
        if method in entries
    ]
    found = describe_losses(curves)
    return {"backbone": backbone, "loss": found} if found else None


def describe_groups(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Accuracy by group, where the data has groups."""
    rows = [
        {
            "title": title,
            "groups": entries[method]["groups"],
            "worst": entries[method]["worst_group"],
        }
        for method, title in TITLES.items()
        if method in entries and entries[method].get("groups")
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row["groups"]))
    return {"backbone": backbone, "names": names, "rows": rows}


def describe_losses(
    series: Sequence[tuple[str, Sequence[tuple[int, float]]]],
    steps: int = 0,
    marks: Sequence[tuple[int, str]] = (),
) -> dict[str, Any] | None:
    """Curves of losses by step, or epoch, in one box, with ticks placed in percent.

    Args:
        series: By name, step and loss of each point; those that are not finite are left out.
        steps: The last step that the box has room for, at least.
        marks: Steps at which something happened, and what.
    """
    finite = [(name, [p for p in points if math.isfinite(p[1])]) for name, points in series]
    kept = [(name, points) for name, points in finite if points]
    if not kept:
        return None
    every = [point for _, points in kept for point in points]
    end = float(max(steps, *(step for step, _ in every))) or 1.0
    x_ticks = [tick for tick in charts.ticks(0.0, end) if tick <= end]
    y_ticks = charts.ticks(min(0.0, *(y for _, y in every)), max(y for _, y in every))
    x_range, y_range = (0.0, end), (y_ticks[0], y_ticks[-1])
    return {
        "width": charts.WIDTH,
        "height": charts.HEIGHT,
        "x_ticks": [(charts.number(x), 100 * x / end) for x in x_ticks],
        "y_ticks": [
            (charts.number(y), 100 * (y_range[1] - y) / (y_range[1] - y_range[0])) for y in y_ticks
        ],
        "marks": _place_marks([(100 * x / end, text) for x, text in marks if x < end]),
        "curves": [
            {
                "name": name,
                "series": number % charts.SERIES,
                "path": charts.curve([(float(x), y) for x, y in points], x_range, y_range),
                "first": points[0],
                "last": points[-1],
            }
            for number, (name, points) in enumerate(kept)
        ],
    }


def _place_marks(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Marks with whether there is room for their labels, on wide screens and on narrow ones."""
    placed: list[dict[str, Any]] = []
    last = {"wide": -math.inf, "narrow": -math.inf}
    for part, text in marks:
        fits = {}
        for name, room in (("wide", _ROOM), ("narrow", _NARROW_ROOM)):
            fits[name] = part - last[name] >= room
            last[name] = part if fits[name] else last[name]
        placed.append({"at": part, "text": text, **fits})
    return placed


def describe_growth(settings: Mapping[str, Any], side: int | None) -> list[tuple[int, str]]:
    """Steps at which a finer level of detail joined the images, and its side."""
    every = settings.get("images.grow_every") or 0
    if settings.get("images.kind") != "pyramid" or not every or side is None:
        return []
    sizes = level_sizes(side)
    start = int(settings.get("images.start_resolution") or 1)
    delay = int(settings.get("images.grow_delay") or 0)
    steps = range(delay, delay + every * (len(sizes) + 1), every)
    counts = [int(num_active(step, sizes, start, every, delay)) for step in steps]
    return [
        (step, f"{sizes[count - 1]} px")
        for step, before, count in zip(steps[1:], counts, counts[1:], strict=False)
        if count > before
    ]


def describe_timelapse(
    run: RunView,
    place: Place,
    budget: int,
    class_names: Sequence[str],
    num_images: int | None,
) -> dict[str, Any] | None:
    """The contact sheets: all of them beside a page, and as many as fit a page that is one file.

    Args:
        run: The run.
        place: Where pictures go.
        budget: Bytes that the sheets may take of one file.
        class_names: Of all classes, in label order.
        num_images: How many distilled images there are, class by class, if known.
    """
    if run.gallery is None:
        return None
    losses = dict(run.losses)
    files = [sheet.path.read_bytes() for sheet in run.sheets]
    every = list(range(len(files)))
    chosen = every if place.lazy else timelapse.choose([len(file) for file in files], budget)
    if len(chosen) < 2:
        return None
    frames = [
        (run.sheets[i].step, place.put("timelapse", number, files[i]))
        for number, i in enumerate(chosen)
    ]
    width, height = size = pictures.webp_size(files[-1])
    shown_images = min(pictures.SHEET_IMAGES, num_images or 0)
    layout = pictures.sheet_layout(shown_images) if shown_images else None
    per_class = num_images // len(class_names) if num_images and class_names else 0
    cells = []
    # The page cuts a sheet into its images, to name them.
    if layout and layout.size == size and per_class:
        step = layout.cell + layout.gap
        cells = [
            {
                "name": class_names[number // per_class],
                "x": i % layout.columns * step,
                "y": i // layout.columns * step,
            }
            for i, number in enumerate(pictures.spread(num_images or 0, pictures.SHEET_IMAGES))
        ]
    return {
        "cells": cells,
        "cell": layout.cell if layout else 0,
        "columns": min(layout.columns, _MOST_COLUMNS) if layout else 1,
        "frames": [{"step": step, "src": src, "loss": losses.get(step)} for step, src in frames],
        "width": width,
        "height": height,
        "images": shown_images,
    }


def describe_map(gallery: Gallery, place: Place) -> dict[str, Any]:
    """Dots of real images by class, and thumbnails of distilled ones, in one box.

    Each direction fills the box. Thumbnails that would hide each other are moved apart, and a line
    leads to where they belong.
    """
    found = gallery.map
    if found is None:
        raise ValueError("the gallery has no map")
    everything = np.concatenate([found.real, found.syn])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, span = (low + high) / 2, np.maximum((high - low) / (1 - 2 * _MARGIN), 1e-9)

    def place_at(points: np.ndarray) -> np.ndarray:
        part = (points - middle[None]) / span[None] + 0.5
        return part * np.asarray([[1, -1]]) + np.asarray([[0, 1]])

    dots = place_at(found.real) * 1000
    thumbs = pictures.spread(len(gallery.labels), _THUMBS)
    small = pictures.shrink([gallery.files[DISTILLED][i] for i in thumbs], _THUMB_SIDE)
    places = place_at(found.syn)[thumbs]
    named = len(thumbs) <= _NAMED
    wide = narrow = places
    if named:
        wide = charts.move_apart(places, _BOX, _SHAPE)
        # There is room for so many names.
        few = len(thumbs) <= _NAMED // 2
        narrow = charts.move_apart(
            places, _NARROW_BOX if few else (_NARROW_BOX[0], _NARROW_BOX[0]), _NARROW_SHAPE
        )
    names = gallery.class_names
    classes = np.unique(found.labels).tolist()
    coloured = len(names) <= _COLOURED
    return {
        "shape": _SHAPE,
        "narrow_shape": _NARROW_SHAPE,
        "named": named,
        "moved": not (np.array_equal(wide, places) and np.array_equal(narrow, places)),
        "classes": [
            {
                "label": label,
                "name": names[label],
                "hue": _hue(label, len(names)) if coloured else None,
                "count": int(np.sum(found.labels == label)),
                "path": "".join(f"M{x:.0f} {y:.0f}h0" for x, y in dots[found.labels == label]),
            }
            for label in classes
        ],
        "thumbs": [
            {
                "label": int(gallery.labels[i]),
                "name": names[int(gallery.labels[i])],
                "hue": _hue(int(gallery.labels[i]), len(names)) if coloured else None,
                "count": int(np.sum(found.labels == gallery.labels[i])),
                "at": 100 * places[number],
                "wide": 100 * wide[number],
                "narrow": 100 * narrow[number],
                "src": place.put("map", i, webp),
            }
            for number, (i, webp) in enumerate(zip(thumbs, small, strict=True))
        ],
        "points": len(found.real),
        "explained": [100 * float(part) for part in found.explained],
    }


def _hue(label: int, num_classes: int) -> int:
    return round(360 * label / num_classes + 20) % 360


def describe_provenance(run: RunView) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Facts by name, as far as they were recorded, and hashes by what they are of."""
    facts: list[tuple[str, str]] = []
    if run.finished:
        facts.append(("distilled on", f"{run.finished} (UTC)"))
    for made in run.made_by:
        where = f", from step {made['from_step']:,}" if len(run.made_by) > 1 else ""
        versions = made.get("versions", {})
        found = {
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "devices": words.devices(made.get("devices", [])),
            "commit": made.get("commit") or "not known",
        }
        facts += [(name + where, text) for name, text in found.items() if text]
    seconds = (run.results or {}).get("seconds", {})
    facts += [words.took(stage, taken) for stage, taken in seconds.items()]
    weights = run.made_by[-1].get("weights", {}) if run.made_by else {}
    hashes = [
        (f"{name}, {file}", str(sha256))
        for name, origin in weights.items()
        for file, sha256 in origin.get("sha256", {}).items()
    ]
    fingerprint = run.config.get("identity", {}).get("data.fingerprint")
    if fingerprint:
        hashes.append(("all images of the data", str(fingerprint)))
    return facts, hashes


def _read_losses(path: epath.Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(int(line["step"]), float(line["loss"])) for line in lines]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
