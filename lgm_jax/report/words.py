"""What a page says in words, for readers who do not know the field's: computed from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lgm_jax.backbones import specs
from lgm_jax.report.judge import contradicts, standard_error

# What classifiers are trained on, in the order of the rows.
TITLES = {
    "distilled": "distilled",
    "centroids": "typical real",
    "neighbors": "look-alike real",
    "random": "random real",
    "full": "all real",
}
# Of the pictures beside a distilled one: name, what it is, and the same where one is several.
CAPTIONS = {
    "centroids": (
        "typical",
        "the real image nearest to the class's mean",
        "nearest to the class's mean",
    ),
    "neighbors": (
        "look-alike",
        "the real image most like the distilled one",
        "most like the distilled one",
    ),
    "random": ("random", "a real image drawn at random", "drawn at random"),
}
STARTS = {"noise": "random noise", "zero": "plain grey", "real": "real images drawn at random"}

# Data sets that come with this package, whose names say too little.
_DATA = {
    "digits": "scans of handwritten digits, zero to nine",
    "digits_spurious": "handwritten digits on backgrounds that mislead",
}

# As the comparison of a sentence.
_THAN = {
    "random": "as many random real ones",
    "centroids": "the most typical real ones",
    "neighbors": "real look-alikes",
    "full": "all real ones",
}
_SECONDS = {
    "distill": "to distil",
    "probe": "to train classifiers on distilled images",
    "baselines": "to train classifiers on real images",
}

# Points of accuracy; a part of less says nothing.
_SHORT_WAY = 5.0


def about_data(name: str) -> str | None:
    """What a data set is, where its name does not say so."""
    return _DATA.get(name)


def about_backbone(name: str) -> str | None:
    """What a backbone is, in one line, if it is one that can be loaded by name."""
    entry = specs.NAMES.get(name)
    if entry is None:
        return None
    return f"{entry.summary}: {entry.spec.summary}"


def join(items: Sequence[str], last: str = "and") -> str:
    """Items as a sentence lists them."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def guess(num_classes: int) -> float:
    """Percent that guessing names correctly."""
    return 100 / num_classes


def compare(entries: Mapping[str, Any], num_test: int | None = None) -> list[str]:
    """What distilled images give more or less than real ones, in points, as parts of a sentence.

    Args:
        entries: Of one evaluation backbone of `results.json`, by method.
        num_test: Images that accuracy was measured on, if known.
    """
    said = []
    for method, than in _THAN.items():
        if method not in entries or "distilled" not in entries:
            continue
        # Against a classifier that has not learned what it can, nothing can be measured.
        if method == "full" and contradicts(entries, num_test):
            continue
        points = _round(entries["distilled"]) - _round(entries[method])
        if abs(points) < 0.05:
            said.append(f"as many as with {than}")
            continue
        unit = " points" if not any("points" in part for part in said) else ""
        said.append(f"{abs(points):.1f}{unit} {'more' if points > 0 else 'fewer'} than with {than}")
    return said


def doubtful(entries: Mapping[str, Any], num_test: int) -> list[str]:
    """Methods whose difference to distilled images may be chance.

    These are the ones within two standard errors of it; see `judge.standard_error`.

    Args:
        entries: Of one evaluation backbone of `results.json`, by method.
        num_test: Images that accuracy was measured on.
    """
    if "distilled" not in entries:
        return []
    own = entries["distilled"]
    return [
        method
        for method in TITLES
        if method in entries
        and method != "distilled"
        and abs(own["top1_mean"] - entries[method]["top1_mean"])
        <= 2 * standard_error([own, entries[method]], num_test)
    ]


def doubt(
    entries: Mapping[str, Any],
    num_test: int | None,
    seed: int | None,
    *,
    made_here: bool,
    repeated: bool = True,
) -> str:
    """How far to trust a comparison, in a few sentences.

    Args:
        entries: Of one evaluation backbone of `results.json`, by method.
        num_test: Images that accuracy was measured on, if known.
        seed: Of the run.
        made_here: Whether the run distilled the images.
        repeated: Whether training was to be repeated.
    """
    one = f"one distillation (seed {seed})" if made_here else "one set of images"
    on = f" on {num_test:,} images" if num_test else ""
    unsure = doubtful(entries, num_test) if num_test else []
    said = [f"Measured{on} for {one}."]
    if unsure:
        these = "difference" if len(unsure) == 1 else "differences"
        kinds = join([TITLES[method].removesuffix(" real") for method in unsure])
        said.append(f"The {these} to {kinds} real images may be chance.")
    if not repeated:
        said.append("Training was not repeated, so how much that would change is not known.")
    if made_here:
        said.append("Another seed gives other images and other numbers.")
    return " ".join(said)


def gap(entries: Mapping[str, Any], num_test: int | None = None) -> float | None:
    """The part of the way from random to all real images that distilled ones go.

    `None` where one of the three is not known, where there is hardly a way to go, or where few
    images do better than all.

    Args:
        entries: Of one evaluation backbone of `results.json`, by method.
        num_test: Images that accuracy was measured on, if known.
    """
    if not {"distilled", "random", "full"} <= set(entries) or contradicts(entries, num_test):
        return None
    own, low, high = (entries[name]["top1_mean"] for name in ("distilled", "random", "full"))
    return (own - low) / (high - low) if high - low >= _SHORT_WAY else None


def glossary(
    methods: Sequence[str], gap_here: float | None, *, has_loss: bool
) -> list[tuple[str, str]]:
    """The words that a page uses, and the settings' words for the same.

    Args:
        methods: Those of the accuracies.
        gap_here: Of the first evaluation backbone.
        has_loss: Whether the page shows a loss.
    """
    found = [
        (
            "distilled",
            "computed, so that a classifier learns from few images what it would from all",
        ),
        (
            "backbone",
            "the frozen model: it turns an image into numbers, its features. It was trained "
            "before, and nothing here changes it",
        ),
        (
            "classifier",
            "a linear one on those features, the only thing that is trained on the images; the "
            "settings call it probe",
        ),
    ]
    if "centroids" in methods:
        found.append(
            (
                "typical",
                "the real images whose features are nearest to the mean of their class; the files "
                "call them centroids",
            )
        )
    if "neighbors" in methods:
        found.append(
            (
                "look-alike",
                "the real image of the same class whose features are most like a distilled "
                "image's; the files call it a neighbor",
            )
        )
    if has_loss:
        found.append(
            (
                "loss",
                "what the steps lower: how far the distilled images still are from what the "
                "objective asks of them",
            )
        )
    if gap_here is not None:
        found.append(
            (
                "gap",
                "(distilled - random) / (all - random), in accuracy: how much of the way from "
                f"random to all real images is gone; {gap_here:.2f} in the first chart",
            )
        )
    return found


def took(stage: str, seconds: float) -> tuple[str, str]:
    """What a stage took, as name and duration."""
    return f"time {_SECONDS.get(stage, f'of {stage}')}", duration(seconds)


def duration(seconds: float) -> str:
    """A duration in its two largest units."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def devices(kinds: Sequence[str]) -> str:
    """Devices by their kinds, counted."""
    counted = {kind: list(kinds).count(kind) for kind in kinds}
    named = [(count, kind.upper() if kind == "cpu" else kind) for kind, count in counted.items()]
    return ", ".join(f"{count} {'x ' if count > 1 else ''}{kind}" for count, kind in named)


def _round(entry: Mapping[str, Any]) -> float:
    # As the chart beside the sentence says it: a reader who subtracts gets the same.
    return round(entry["top1_mean"], 1)
