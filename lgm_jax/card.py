"""The card of a shared data set: front matter that the Hugging Face hub reads, and Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lgm_jax import names, objectives, public, runs
from lgm_jax.distilled import ARRAYS, METADATA, DistilledSet, read_distilled
from lgm_jax.errors import UserError
from lgm_jax.report import template
from lgm_jax.report.judge import judge
from lgm_jax.report.vocabulary import TITLES

CARD, PREVIEW, SPLIT = "README.md", "preview.png", "train"

# The hub's words for the number of images.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))

_ROWS = {**TITLES, "distilled": "**the images of this set**"}


class Finished(NamedTuple):
    """A finished run, as others may see it: its images, `results.json`, record and settings."""

    images: DistilledSet
    results: Mapping[str, Any]
    record: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def data_name(self) -> str | None:
        """`data.name`, which version 0.1 recorded with the distillation."""
        return self.settings.get("data.name", self.record["inputs"].get("data.name"))


class Terms(NamedTuple):
    """The terms of a data set that images are distilled from.

    Attributes:
        license: The hub's name of the terms.
        name: Their name, where the hub has none.
        note: A sentence for the card, in Markdown.
    """

    license: str
    name: str | None
    link: str | None
    note: str


_IMAGENET = Terms(
    "other",
    "imagenet-terms-of-access",
    "https://image-net.org/download",
    "ImageNet's terms of access allow non-commercial research and education only.",
)

TERMS: Mapping[str, Terms] = {
    "digits": Terms(
        "cc-by-4.0",
        None,
        None,
        "The digits are E. Alpaydin and C. Kaynak's Optical Recognition of Handwritten Digits "
        "(UCI Machine Learning Repository, https://doi.org/10.24432/C50P49), under CC BY 4.0.",
    ),
    "imagenet": _IMAGENET,
    "imagenet2012": _IMAGENET,
    "imagenette": _IMAGENET,
}

_UNKNOWN = Terms(
    "unknown", None, None, "These terms are not known to the program that distilled the images."
)


def read_run(workdir: str | Path) -> Finished:
    """Reads the folder of a finished run that distilled images."""
    path, config, stages, results = runs.read_folder(workdir)
    record = stages.get("distill") or {}
    if config["identity"].get("images.source"):
        raise UserError(f"{workdir} evaluates images of another source, and made none to share")
    lacking = None
    if "result" not in record or not (path / runs.DISTILLED / ARRAYS).exists():
        lacking = "its images are not distilled yet"
    elif results is None:
        lacking = f"it has no {runs.RESULTS} yet"
    elif results.get("steps") != record["result"]["steps"]:
        lacking = f"its results are of {results.get('steps')} steps, its images of another number"
    if lacking is not None or results is None:
        raise UserError(f"{workdir} is not finished: {lacking}; start its command again")
    settings = public.settings(config.get("config", {}))
    return Finished(read_distilled(path), results, record, settings)


def write_card(finished: Finished, source: str, license: str | None = None) -> str:
    """Returns the text of the card.

    Args:
        source: `user/name` on the hub, or a folder's name.
        license: The hub's name of a licence, in place of the source data's.
    """
    terms = TERMS.get(str(finished.data_name), _UNKNOWN)
    images, results = finished.images, finished.results
    count, height, width, _ = images.images.shape
    place = json.dumps(source)
    context = {
        "front_matter": _front_matter(finished, source, terms, license),
        "title": _title(source),
        "preview": PREVIEW,
        "arrays": ARRAYS,
        "split": SPLIT,
        "count": count,
        "height": height,
        "width": width,
        "results": results,
        "method": _method(results),
        "soft": images.probabilities is not None,
        "splits": sorted({e["split"] for rows in results["probe"].values() for e in rows.values()}),
        "accuracies": [
            (title, [_format_cell(rows.get(method)) for rows in results["probe"].values()])
            for method, title in _ROWS.items()
            if any(method in rows for rows in results["probe"].values())
        ],
        "findings": judge(results),
        "on_hub": "/" in source,
        "place": place,
        "folder": f'snapshot_download({place}, repo_type="dataset")' if "/" in source else place,
        "terms": terms,
        "license": license,
        "settings": {key: value for key, value in finished.settings.items() if value is not None},
        "record": finished.record,
        "class_names": images.class_names,
    }
    return template.render("card.md", context) + "\n"


def _front_matter(finished: Finished, source: str, terms: Terms, license: str | None) -> str:
    from huggingface_hub import DatasetCardData

    count = len(finished.images.labels)
    files = [f"{SPLIT}/{METADATA}", f"{SPLIT}/**/*.png"]
    return DatasetCardData(
        license=license or terms.license,
        license_name=None if license else terms.name,
        license_link=None if license else terms.link,
        pretty_name=_title(source),
        task_categories=["image-classification"],
        size_categories=[next((size for top, size in _SIZES if count < top), "n>1M")],
        tags=["dataset-distillation", "synthetic", "lgm_jax", *finished.results["backbones"]],
        configs=[{"config_name": "default", "data_files": [{"split": SPLIT, "path": files}]}],
    ).to_yaml()


def _title(source: str) -> str:
    return names.plain(source.rpartition("/")[2])


def _method(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the objective's name and title, and text and address of its source or `""`."""
    name = str(results["objective"])
    about = results.get("about_objective")
    if about is None:
        # An earlier version, which had no objectives but ours, recorded the name alone.
        ours = objectives.OBJECTIVES.get(name)
        about = {"title": name} if ours is None else objectives.about(ours)
    source = about.get("source", "")
    number = re.fullmatch(r"arXiv (\d+\.\d+)", source)
    link = f"https://arxiv.org/abs/{number[1]}" if number else ""
    return {"name": name, "title": about["title"], "source": source, "link": link}


def _format_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    std = entry["top1_std"]
    return f"{entry['top1_mean']:.1f}" + ("" if std is None else f" ± {std:.1f}")
