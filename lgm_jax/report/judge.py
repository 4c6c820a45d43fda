"""Which results cannot be right, or are no use: one judgement for everything that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Test images, where a record does not say how many there were.
_ASSUMED_IMAGES = 1000

# What a classifier is trained on, in a sentence.
_CALLED = {
    "distilled": "the distilled images",
    "centroids": "the real images nearest to class means",
    "neighbors": "the real images nearest to distilled ones",
    "random": "random real images",
    "full": "all real images",
}


class Finding(NamedTuple):
    """Something about results that whoever reads them must know first.

    Attributes:
        title: A few words, as an attribute of the results.
        text: A sentence or two: what is wrong, with its numbers, and what to do.
        backbone: The evaluation backbone, or `None` where it is about the images.
    """

    title: str
    text: str
    backbone: str | None = None


def judge(results: Mapping[str, Any], num_test: int | None = None) -> list[Finding]:
    """Returns what makes results doubtful; empty if nothing does.

    Differences within two standard errors, of the choice of test images and of repeated training,
    are no findings where what is found would be a fault.

    Args:
        results: The content of `results.json`, of any version.
        num_test: Images that accuracies were measured on, where `results` does not say.
    """
    found = _judge_images(results)
    images = results.get("test_images") or num_test or _ASSUMED_IMAGES
    for backbone, entries in results.get("probe", {}).items():
        of_one = _judge_accuracies(entries, results.get("num_classes") or 0, images)
        found += [Finding(title, f"On {backbone}, {text}", backbone) for title, text in of_one]
    return found


def contradicts(entries: Mapping[str, Any], num_test: int | None = None) -> list[str]:
    """Methods of few images that do better than all real images, which none should.

    Args:
        entries: Of one evaluation backbone of `results.json`, by method.
        num_test: Images that accuracy was measured on, if known.
    """
    if "full" not in entries or not _is_number(entries["full"]):
        return []
    return [
        method
        for method in _CALLED
        if method in entries
        and _is_number(entries[method])
        and entries[method]["top1_mean"] - entries["full"]["top1_mean"]
        > 2 * standard_error([entries[method], entries["full"]], num_test or _ASSUMED_IMAGES)
    ]


def standard_error(entries: Sequence[Mapping[str, Any]], num_test: int) -> float:
    """Standard error of the difference of two accuracies, or of one, in points.

    It has two parts: the choice of test images, of which two accuracies are taken to be independent
    (they share them, so it is rather too large), and the spread of repeated training.

    Args:
        entries: One or two entries of `results.json`.
        num_test: Images that they were measured on.
    """
    variance = 0.0
    for entry in entries:
        mean, std = entry["top1_mean"], entry["top1_std"] or 0.0
        variance += mean * (100 - mean) / num_test + std**2 / len(entry["top1_runs"])
    return math.sqrt(variance)


def _judge_images(results: Mapping[str, Any]) -> list[Finding]:
    found = []
    loss, steps, pyramid = (results.get(name) for name in ("final_loss", "steps", "pyramid"))
    if steps == 0:
        found.append(
            Finding("not distilled", "No step was made: the images are what they began as.")
        )
    elif pyramid and pyramid["reached"] < pyramid["finest"]:
        found.append(
            Finding(
                "unfinished",
                f"The images are no finer than {pyramid['reached']} of {pyramid['finest']} px: "
                f"{steps} steps were too few for their pyramid to grow. Begin anew with more "
                "steps, or with images.grow_every unset, so that it follows them.",
            )
        )
    if loss is not None and not math.isfinite(loss):
        found.append(Finding("diverged", f"The last loss is {loss}."))
    return found


def _judge_accuracies(
    entries: Mapping[str, Any], num_classes: int, num_test: int
) -> list[tuple[str, str]]:
    """Titles and texts of what is wrong on one evaluation backbone."""
    found = []
    lost = [_CALLED.get(name, name) for name, entry in entries.items() if not _is_number(entry)]
    if lost:
        found.append(("not a number", f"the accuracy with {_join(lost)} is not a number."))
    entries = {name: entry for name, entry in entries.items() if _is_number(entry)}
    means = {name: entry["top1_mean"] for name, entry in entries.items()}
    better = contradicts(entries, num_test)
    if better:
        few = _join([f"{_CALLED[name]} ({means[name]:.1f} %)" for name in better])
        found.append(
            (
                "cannot be right",
                f"all real images reach {means['full']:.1f} %, less than {few}: the classifier on "
                "all of them has not learned what it can, and nothing can be measured against it. "
                "Raise probe.full_epochs.",
            )
        )
    guess = 100 / num_classes if num_classes > 1 else None
    for name in ("distilled", "full"):
        if guess is None or name not in means:
            continue
        chance = {"top1_mean": guess, "top1_std": None, "top1_runs": [guess]}
        if means[name] <= guess + 2 * standard_error([chance], num_test):
            found.append(
                (
                    "no better than guessing",
                    f"{_CALLED[name]} reach {means[name]:.1f} %, no more than guessing "
                    f"({guess:.3g} %).",
                )
            )
    if {"distilled", "random"} <= set(means) and means["distilled"] < means["random"]:
        less = means["random"] - means["distilled"]
        unsure = less <= 2 * standard_error([entries["distilled"], entries["random"]], num_test)
        found.append(
            (
                "no better than random images" if unsure else "worse than random images",
                f"the distilled images reach {means['distilled']:.1f} %, less than random real "
                f"images ({means['random']:.1f} %){', which may be chance' if unsure else ''}.",
            )
        )
    return found


def _is_number(entry: Mapping[str, Any]) -> bool:
    return entry.get("top1_mean") is not None and math.isfinite(entry["top1_mean"])


def _join(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
