"""Judge results: which cannot be right, are no use, or differ by chance alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lgm_jax.names import join
from lgm_jax.report.vocabulary import TITLES, images_of

# Test images, where a record lacks their number.
_ASSUMED_IMAGES = 1000

# Points of accuracy between random and all real images, of which a share means something.
_SHORT_WAY = 5.0

Entries = Mapping[str, Any]
"""The entries of one evaluation backbone in `results.json`, by method."""


class Finding(NamedTuple):
    """A fault of results that their readers must know first.

    Attributes:
        title: A few words, as an attribute of the results.
        text: A sentence or two: the fault, with its numbers, and what to do.
        backbone: The evaluation backbone, or `None` where it is about the images.
    """

    title: str
    text: str
    backbone: str | None = None


def judge(results: Mapping[str, Any], num_test: int | None = None) -> list[Finding]:
    """Returns the faults of results; empty if there are none.

    Differences within two standard errors, of the choice of test images and of repeated training,
    are not counted as faults.

    Args:
        results: The content of `results.json`, of any version.
        num_test: Images that accuracies were measured on, where `results` lacks it.
    """
    findings = [Finding(*each) for each in _judge_images(results)]
    images = results.get("test_images") or num_test or _ASSUMED_IMAGES
    for backbone, entries in results.get("probe", {}).items():
        for title, text in _judge_accuracies(entries, results.get("num_classes") or 0, images):
            findings.append(Finding(title, f"On {backbone}, {text}", backbone))
    return findings


def contradicts(entries: Entries, num_test: int | None = None) -> list[str]:
    """Returns the methods of few images that do better than all real images, which none should."""
    entries = {name: entry for name, entry in entries.items() if is_number(entry)}
    if "full" not in entries:
        return []
    return [
        method
        for method in filter(entries.__contains__, TITLES)
        if entries[method]["top1_mean"] - entries["full"]["top1_mean"]
        > 2 * difference_error(entries, method, "full", num_test or _ASSUMED_IMAGES)
    ]


def doubtful(entries: Entries, num_test: int) -> list[str]:
    """Returns the methods within two standard errors of the distilled images."""
    if "distilled" not in entries:
        return []
    return [
        method
        for method in filter(entries.__contains__, TITLES)
        if method != "distilled"
        and abs(entries["distilled"]["top1_mean"] - entries[method]["top1_mean"])
        <= 2 * difference_error(entries, "distilled", method, num_test)
    ]


def gap(entries: Entries, num_test: int | None = None) -> float | None:
    """Returns how much of the way from random to all real images distilled ones close.

    `None` where one of the three is not known, where there is hardly a way to go, or where few
    images do better than all.
    """
    if not {"distilled", "random", "full"} <= set(entries) or contradicts(entries, num_test):
        return None
    own, low, high = (entries[name]["top1_mean"] for name in ("distilled", "random", "full"))
    return (own - low) / (high - low) if high - low >= _SHORT_WAY else None


def difference_error(entries: Entries, a: str, b: str, num_test: int) -> float:
    """Returns the standard error of the difference of two rows, in points.

    That of their paired test on the same test images, where the results have it; else that of
    accuracies that are taken to be independent, which is rather too large.
    """
    for row, other in ((a, b), (b, a)):
        if other in (entries[row].get("against") or {}):
            return float(entries[row]["against"][other]["standard_error"])
    return standard_error([entries[a], entries[b]], num_test)


def standard_error(entries: Sequence[Mapping[str, Any]], num_test: int) -> float:
    """Returns the standard error of the difference of two independent accuracies, or of one.

    It is in points, and has two parts: the choice of test images, and the spread of repeated
    training.
    """
    return math.sqrt(
        sum(
            entry["top1_mean"] * (100 - entry["top1_mean"]) / num_test
            + (entry["top1_std"] or 0.0) ** 2 / len(entry["top1_runs"])
            for entry in entries
        )
    )


def _judge_images(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    loss, steps, pyramid = (results.get(name) for name in ("final_loss", "steps", "pyramid"))
    if steps == 0:
        yield "not distilled", "No step was made: the images are the initial ones."
    elif pyramid and pyramid["reached"] < pyramid["finest"]:
        yield (
            "unfinished",
            f"The images are no finer than {pyramid['reached']} of {pyramid['finest']} px: "
            f"{steps} steps were too few for their pyramid to grow. Begin anew with more "
            "steps, or with images.grow_every unset, so that it follows them.",
        )
    if loss is not None and not math.isfinite(loss):
        yield "diverged", f"The last loss is {loss}."


def _judge_accuracies(
    entries: Entries, num_classes: int, num_test: int
) -> Iterator[tuple[str, str]]:
    """Yields a title and a text for each fault on one evaluation backbone."""
    lost = [images_of(name) for name, entry in entries.items() if not is_number(entry)]
    if lost:
        yield "not a number", f"the accuracy with {join(lost)} is not a number."
    entries = {name: entry for name, entry in entries.items() if is_number(entry)}
    means = {name: entry["top1_mean"] for name, entry in entries.items()}
    better = contradicts(entries, num_test)
    if better:
        few = join([f"{images_of(name)} ({means[name]:.1f} %)" for name in better])
        yield (
            "cannot be right",
            f"all real images reach {means['full']:.1f} %, less than {few}: the classifier on "
            "all of them has not learned what it can, and nothing can be measured against it. "
            "Raise probe.full_epochs.",
        )
    guess = 100 / max(1, num_classes)
    chance = {"top1_mean": guess, "top1_std": None, "top1_runs": [guess]}
    least = guess + 2 * standard_error([chance], num_test) if num_classes > 1 else -math.inf
    for name in ("distilled", "full"):
        if name in means and means[name] <= least:
            yield (
                "no better than guessing",
                f"{images_of(name)} reach {means[name]:.1f} %, no more than guessing "
                f"({guess:.3g} %).",
            )
    if not {"distilled", "random"} <= set(means):
        return
    own, random = means["distilled"], means["random"]
    unsure = "random" in doubtful(entries, num_test)
    if own < random:
        yield (
            "no better than random images" if unsure else "worse than random images",
            f"the distilled images reach {own:.1f} %, less than random real images "
            f"({random:.1f} %){', which may be chance' if unsure else ''}.",
        )
    # What is no better than guessing is called so already.
    elif unsure and own > least:
        yield (
            "not clearly better than random images",
            f"the distilled images reach {own:.1f} %, random real images {random:.1f} %: the "
            "difference may be chance.",
        )


def is_number(entry: Mapping[str, Any]) -> bool:
    """Returns whether an entry's accuracy is a number."""
    return entry.get("top1_mean") is not None and math.isfinite(entry["top1_mean"])
