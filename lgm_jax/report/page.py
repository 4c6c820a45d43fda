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
import shlex
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from lgm_jax import runs
from lgm_jax.distilled import ARRAYS, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.report import charts, pictures, timelapse
from lgm_jax.report.gallery import (
    DISTILLED,
    REALS,
    Gallery,
    load_gallery,
    make_gallery,
    shown,
)

# Of the accuracies, in their order, for readers who do not know the field's words.
TITLES = {
    "distilled": "distilled images",
    "centroids": "typical real images",
    "neighbors": "look-alike real images",
    "random": "random real images",
    "full": "all real images",
}
# Of the pictures beside a distilled one.
CAPTIONS = {
    "centroids": ("typical", "the real image nearest to the class's mean"),
    "neighbors": ("look-alike", "the real image most like the distilled one"),
    "random": ("random", "a real image drawn at random"),
}
OBJECTIVES = {
    "lgm": "Linear Gradient Matching",
    "sfm": "statistical flow matching",
    "clp": "a closed-form linear probe",
}

# Bytes that the timelapse takes of a page that is one file, together with other runs' images, which
# may take half of them; the side of the latter.
_FRAMES_BUDGET, _BESIDE_BUDGET, _BESIDE_SIDE = 2_000_000, 1_000_000, 160

# Thumbnails on the map, and their side.
_THUMBS, _THUMB_SIDE = 100, 48

# Shape of the map, height by width.
_FLATTEST, _TALLEST = 0.5, 0.75
_MARGIN = 0.05


@dataclasses.dataclass(frozen=True)
class RunView:
    """What a run folder says, for a page.

    Attributes:
        path: The folder.
        config: `config.json`.
        results: `results.json`, unless the run is unfinished.
        losses: Step and loss of each line of `metrics.jsonl`, up to the steps that are shown.
        made_by: The processes that distilled.
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

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.config.get("config", {})

    @property
    def backbones(self) -> list[str]:
        """What the images were distilled against."""
        if self.results is not None:
            return list(self.results.get("backbones", []))
        return [str(self.settings.get("backbone.name", ""))]


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
    return RunView(path, config, results, losses, made_by, gallery, sheets, step)


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
    with runs.replacing(page) as temporary:
        temporary.write_text(render("run.html", describe(run, others, place)))
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
    environment.filters |= {"percent": percent, "thousands": "{:,}".format}
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
    settings = run.settings
    counts = run.config.get("data", {}).get("counts", {}).get("train", {})
    gallery, where = run.gallery, _workdir(run)
    # Of an unfinished run, the gallery may show a part.
    classes = len(counts.get("classes", ())) or (len(gallery.class_names) if gallery else 0)
    ipc = (run.results or settings).get("ipc")
    probes = (run.results or {}).get("probe", {})
    return {
        "run": run.name,
        "title": f"{run.config.get('data', {}).get('name', run.name)}, distilled",
        "dataset": run.config.get("data", {}).get("name", ""),
        "unfinished": run.results is None,
        "step": run.step,
        "steps": (run.results or {}).get("steps") or settings.get("steps"),
        "seed": settings.get("seed"),
        "image_every": settings.get("image_every"),
        "backbones": run.backbones,
        "objective": OBJECTIVES.get(str((run.results or settings).get("objective"))),
        "ipc": ipc,
        "num_classes": classes,
        "num_images": ipc * classes if gallery and ipc else None,
        "num_train": counts.get("images"),
        "cards": describe_cards(gallery, others, place) if gallery else [],
        "per_class": gallery.total if gallery else 0,
        "kinds": [(kind, *CAPTIONS[kind]) for kind in REALS if gallery and kind in gallery.files],
        "accuracy": [describe_accuracy(name, entries) for name, entries in probes.items()],
        "groups": [found for found in (describe_groups(*item) for item in probes.items()) if found],
        "learning": [
            found for found in (describe_learning(*item) for item in probes.items()) if found
        ],
        "loss": describe_losses(
            [(run.name, run.losses)],
            # What is still to come is left free.
            settings.get("steps", 0) if run.results is None else 0,
        ),
        "grows": settings.get("images.kind") == "pyramid"
        and bool(settings.get("images.grow_every")),
        "timelapse": describe_timelapse(
            run, place, _FRAMES_BUDGET - (_BESIDE_BUDGET if others else 0)
        ),
        "map": describe_map(gallery, place) if gallery and gallery.map else None,
        "lazy": place.lazy,
        "provenance": describe_provenance(run),
        "settings": {name: json.dumps(value) for name, value in settings.items()},
        "command": run.config.get("command"),
        "load": "import lgm_jax\n\n"
        f"images, labels, class_names = lgm_jax.load_distilled({where!r})",
        "compare": f"python -m lgm_jax.report {shlex.quote(where)} ANOTHER_RUN --out=compare.html",
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
                {"kind": kind, "src": place.put(kind, i, gallery.files[kind][i])}
                for kind in REALS
                if kind in gallery.files
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


def first_pictures(gallery: Gallery) -> dict[int, bytes]:
    """The first distilled image of each class."""
    pairs = zip(gallery.labels.tolist(), gallery.files[DISTILLED], strict=True)
    return dict(reversed(list(pairs)))


def run_title(run: RunView) -> str:
    """What tells a run from others: its backbones, as a rule."""
    return " + ".join(run.backbones) or run.name


def describe_accuracy(backbone: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of an evaluation backbone, from 0 to 100 %, and how they were measured."""
    bars = []
    for method, title in TITLES.items():
        entry = entries.get(method)
        if entry is None:
            continue
        mean, std = entry["top1_mean"], entry["top1_std"]
        bars.append(
            {
                "method": method,
                "title": title,
                "mean": mean,
                "std": std,
                "low": max(0.0, mean - (std or 0.0)),
                "high": min(100.0, mean + (std or 0.0)),
            }
        )
    values = {bar["method"]: bar["mean"] for bar in bars}
    has_all = {"distilled", "full"} <= set(values) and values["full"] > 0
    return {
        "backbone": backbone,
        "bars": bars,
        "values": values,
        "share": 100 * values["distilled"] / values["full"] if has_all else None,
        "runs": max(len(entry["top1_runs"]) for entry in entries.values()),
        "split": next(iter(entries.values()))["split"],
        "training": describe_training(entries),
    }


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
    series: Sequence[tuple[str, Sequence[tuple[int, float]]]], steps: int = 0
) -> dict[str, Any] | None:
    """Curves of losses by step, or epoch, in one box, with ticks placed in percent.

    Args:
        series: By name, step and loss of each point.
        steps: The last step that the box has room for, at least.
    """
    kept = [(name, points) for name, points in series if points]
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


def describe_timelapse(run: RunView, place: Place, budget: int) -> dict[str, Any] | None:
    """The contact sheets: all of them beside a page, and as many as fit a page that is one file.

    Args:
        run: The run.
        place: Where pictures go.
        budget: Bytes that the sheets may take of one file.
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
    width, height = pictures.webp_size(files[-1])
    return {
        "frames": [{"step": step, "src": src, "loss": losses.get(step)} for step, src in frames],
        "width": width,
        "height": height,
        "images": min(pictures.SHEET_IMAGES, run.gallery.total * len(run.gallery.class_names)),
    }


def describe_map(gallery: Gallery, place: Place) -> dict[str, Any]:
    """Dots of real images by class, and thumbnails of distilled ones, in one box."""
    found = gallery.map
    if found is None:
        raise ValueError("the gallery has no map")
    everything = np.concatenate([found.real, found.syn])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, span = (low + high) / 2, np.maximum((high - low) * (1 + 2 * _MARGIN), 1e-9)
    shape = float(np.clip(span[1] / span[0], _FLATTEST, _TALLEST))
    # The same scale along both axes.
    width = max(span[0], span[1] / shape)
    size = np.asarray([width, width * shape])

    def place_at(points: np.ndarray) -> np.ndarray:
        part = (points - middle[None]) / size[None] + 0.5
        return part * np.asarray([[1, -1]]) + np.asarray([[0, 1]])

    dots = place_at(found.real) * np.asarray([[1000, 1000 * shape]])
    thumbs = pictures.spread(len(gallery.labels), _THUMBS)
    small = pictures.shrink([gallery.files[DISTILLED][i] for i in thumbs], _THUMB_SIDE)
    corners = place_at(found.syn) * 100
    names = gallery.class_names
    return {
        "shape": shape,
        "few": len(names) <= charts.SERIES,
        "classes": [
            {
                "label": label,
                "name": names[label],
                "path": "".join(f"M{x:.0f} {y:.0f}h0" for x, y in dots[found.labels == label]),
            }
            for label in np.unique(found.labels).tolist()
        ],
        "thumbs": [
            {
                "label": int(gallery.labels[i]),
                "name": names[int(gallery.labels[i])],
                "x": float(corners[i, 0]),
                "y": float(corners[i, 1]),
                "src": place.put("map", i, webp),
            }
            for i, webp in zip(thumbs, small, strict=True)
        ],
        "points": len(found.real),
        "explained": [100 * float(part) for part in found.explained],
    }


def describe_provenance(run: RunView) -> list[tuple[str, str]]:
    """Facts by name, as far as they were recorded: versions, devices, commit, hashes."""
    facts: list[tuple[str, str]] = []
    identity = run.config.get("identity", {})
    for made in run.made_by:
        where = f", from step {made['from_step']}" if len(run.made_by) > 1 else ""
        versions, devices = made.get("versions", {}), made.get("devices", [])
        found = {
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
            "devices": ", ".join(
                f"{devices.count(kind)} of {kind}" for kind in dict.fromkeys(devices)
            ),
            "commit": made.get("commit") or "not a git checkout",
        }
        facts += [(name + where, text) for name, text in found.items() if text]
    weights = run.made_by[-1].get("weights", {}) if run.made_by else {}
    for name, origin in weights.items():
        for file, sha256 in origin.get("sha256", {}).items():
            facts.append((f"{name}, sha256 of {file}", sha256))
    if identity.get("data.fingerprint"):
        facts.append(("fingerprint of the data", str(identity["data.fingerprint"])))
    for name, seconds in (run.results or {}).get("seconds", {}).items():
        facts.append((f"seconds of {name}", f"{seconds:,.0f}"))
    return facts


def _workdir(run: RunView) -> str:
    """The run folder as it was typed, if that is known, else its name."""
    for word in shlex.split(str(run.config.get("command") or "")):
        if word.startswith("--workdir="):
            return word.removeprefix("--workdir=")
    return run.name


def _read_losses(path: epath.Path) -> list[tuple[int, float]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(int(line["step"]), float(line["loss"])) for line in lines]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
