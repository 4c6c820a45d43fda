"""The sentences of a page, for readers from outside the field: computed from a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from lgm_jax.backbones import specs
from lgm_jax.names import join
from lgm_jax.report.judge import Entries, Finding, contradicts, doubtful
from lgm_jax.report.vocabulary import TITLES, images_of

# Real pictures beside a distilled one: their description, and that where one picture is several.
CAPTIONS = {
    "centroids": ("the one nearest to the class's mean", "nearest to the class's mean"),
    "neighbors": ("the one most like the distilled image", "most like the distilled image"),
    "random": ("one drawn at random", "drawn at random"),
}
STARTS = {"noise": "random noise", "zero": "plain grey", "real": "real images drawn at random"}

# Descriptions of the data sets in this package.
DATA = {
    "digits": "scans of handwritten digits, zero to nine",
    "digits_spurious": "handwritten digits on backgrounds that mislead",
}

PURPOSES = {
    "distill": "to distil",
    "probe": "to train classifiers on distilled images",
    "baselines": "to train classifiers on real images",
}

_GLOSSARY = {
    "distilled": "computed, so that a classifier learns from few images what it would from all",
    "backbone": "the frozen model: it turns an image into numbers, its features. It was trained "
    "before, and nothing here changes it",
    "classifier": "a linear one on those features, the only thing that is trained on the images; "
    "the settings call it probe",
    "typical real": "the images whose features are nearest to the mean of their class; the files "
    "call them centroids",
    "look-alike real": "the image of the same class whose features are most like a distilled "
    "image's; the files call it a neighbor",
    "loss": "what the steps lower: how far the distilled images still are from what the objective "
    "asks of them",
    "gap": "(distilled - random) / (all - random), in accuracy: how much of the way from random to "
    "all real images is gone; {:.2f} in the first chart",
}


def about_backbone(name: str) -> str | None:
    """Returns what a backbone is, in one line, if it is one that can be loaded by name."""
    entry = specs.NAMES.get(name)
    return None if entry is None else f"{entry.summary}: {entry.spec.summary}"


def headline(
    probes: Mapping[str, Entries],
    backbones: Sequence[str],
    num_images: int | None,
    num_train: int | None,
    findings: Sequence[Finding],
) -> str | None:
    """Returns the result of a run in a few words, which does not boast of what went wrong.

    It takes the entries of all evaluation backbones, of which the first that the images are made
    for counts, or else the first; and the numbers of distilled images and of real ones, where they
    are known. Without distilled images there is no such result.
    """
    if not num_images:
        return None
    own = next((name for name in [*backbones, *probes] if name in probes), None)
    entries = {} if own is None else probes[own]
    findings = [finding for finding in findings if finding.backbone in (None, own)]
    few = f"{num_images:,} image{'s' if num_images > 1 else ''}"
    if findings:
        return f"{few}: {findings[0].title}"
    if "distilled" not in entries:
        return f"{few} in place of {num_train:,}" if num_train else f"{few}, distilled"
    verb = "teach" if num_images > 1 else "teaches"
    said = f"{few} {verb} {entries['distilled']['top1_mean']:.1f}\u00a0%"
    if "full" in entries:
        every = f"all {num_train:,}" if num_train else "all real ones"
        said += f", {every} teach {entries['full']['top1_mean']:.1f}\u00a0%"
    return said


def compare(
    entries: Entries, num_test: int | None = None, against: Collection[str] = TITLES
) -> list[str]:
    """Compares distilled images with real ones, in points, as parts of a sentence.

    Args:
        against: Methods to compare with; all by default.
    """
    if "distilled" not in entries:
        return []
    parts: list[str] = []
    for method in TITLES:
        if method == "distilled" or method not in entries or method not in against:
            continue
        # Against a classifier that has not learned what it can, nothing can be measured.
        if method == "full" and contradicts(entries, num_test):
            continue
        # Of numbers as the chart shows them: a reader who subtracts gets the same.
        own, other = (round(entries[name]["top1_mean"], 1) for name in ("distilled", method))
        if abs(own - other) < 0.05:
            parts.append(f"as many as with {images_of(method)}")
            continue
        unit = "" if any("points" in part for part in parts) else " points"
        more = "more" if own > other else "fewer"
        parts.append(f"{abs(own - other):.1f}{unit} {more} than with {images_of(method)}")
    return parts


def doubt(
    entries: Entries,
    num_test: int | None,
    seed: int | None,
    *,
    made_here: bool,
    repeated: bool = True,
) -> str:
    """Says how far to trust a comparison, in a few sentences.

    Args:
        made_here: Whether the run distilled the images.
        repeated: Whether training was to be repeated.
    """
    one = f"one distillation (seed {seed})" if made_here else "one set of images"
    on = f" on {num_test:,} images" if num_test else ""
    unsure = doubtful(entries, num_test) if num_test else []
    sentences = [f"Measured{on} for {one}."]
    if unsure:
        these = "difference" if len(unsure) == 1 else "differences"
        kinds = join([TITLES[method].removesuffix(" real") for method in unsure])
        sentences.append(f"The {these} to {kinds} real images may be chance.")
    if not repeated:
        sentences.append("Training was not repeated, so its spread is not known.")
    if made_here:
        sentences.append("Another seed gives other images and other numbers.")
    return " ".join(sentences)


def glossary(
    methods: Collection[str], gap_here: float | None, *, has_loss: bool
) -> list[tuple[str, str]]:
    """Returns the words of a page with their meaning: of its rows, its gap and its loss."""
    absent = {
        "typical real": "centroids" not in methods,
        "look-alike real": "neighbors" not in methods,
        "loss": not has_loss,
        "gap": gap_here is None,
    }
    return [(w, text.format(gap_here)) for w, text in _GLOSSARY.items() if not absent.get(w)]


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def devices(kinds: Sequence[str]) -> str:
    """Counts devices by their kinds."""
    names = Counter(kind.upper() if kind == "cpu" else kind for kind in kinds)
    return ", ".join(f"{count} {'x ' if count > 1 else ''}{kind}" for kind, count in names.items())
