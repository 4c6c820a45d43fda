"""Share a finished run: `python -m lgm_jax.share RUN --to=hub:USER/NAME` or `--to=FOLDER`.

The data set is

    README.md             the data set card
    train/0_zero/000.png  the images, one folder per class
    train/metadata.jsonl  label and class name of each
    distilled.npz         the unrounded values
    preview.png           the images in one picture

and loads as it is with `lgm_jax.load_distilled`, the Hugging Face library `datasets`, TFDS's
`ImageFolder`, and torchvision's on `train/`. It holds no real image.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lgm_jax import files, names, objectives, public, runs, terminal
from lgm_jax.distilled import ARRAYS, METADATA, DistilledSet, read_distilled, save_distilled
from lgm_jax.errors import UserError, explain
from lgm_jax.report import template
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.judge import judge
from lgm_jax.report.vocabulary import TITLES

CARD, PREVIEW, SPLIT = "README.md", "preview.png", "train"

# The hub's words for the number of images.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))

_ROWS = {**TITLES, "distilled": "**the images of this set**"}

_HUB = "hub:"

# Images in the preview: more are too small to see.
_PREVIEWED = 100


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


@terminal.one_line_errors
def main(argv: Sequence[str]) -> int:
    """Shares the run that the command line names; returns the exit code."""
    options = _parse(argv)
    finished = read_run(options.run)
    parent = None
    try:
        if options.folder is not None and not options.dry_run:
            parent = options.folder.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".share-") as temporary:
            folder = Path(temporary) / "set"
            folder.mkdir()
            source = options.repo or options.folder.resolve().name
            export(finished, folder, source, options.license)
            if options.dry_run:
                _describe(folder)
            elif options.repo:
                url = upload(folder, options.repo, private=options.private, update=options.update)
                print(f"shared: {url}")
            else:
                # At the end, so that no folder of this name is incomplete.
                folder.rename(options.folder)
                print(f"shared: {options.folder}")
    except OSError as error:
        raise UserError(f"cannot write {options.to}: {explain(error)}") from error
    return 0


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
        "title": names.plain(source.rpartition("/")[2]),
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
    paths = [f"{SPLIT}/{METADATA}", f"{SPLIT}/**/*.png"]
    return DatasetCardData(
        license=license or terms.license,
        license_name=None if license else terms.name,
        license_link=None if license else terms.link,
        pretty_name=names.plain(source.rpartition("/")[2]),
        task_categories=["image-classification"],
        size_categories=[next((size for top, size in _SIZES if count < top), "n>1M")],
        tags=["dataset-distillation", "synthetic", "lgm_jax", *finished.results["backbones"]],
        configs=[{"config_name": "default", "data_files": [{"split": SPLIT, "path": paths}]}],
    ).to_yaml()


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


def export(finished: Finished, folder: Path, source: str, license: str | None = None) -> None:
    """Writes a run's images and their card.

    Args:
        source: The set that the card's examples load: `user/name` on the hub, or a folder's name.
        license: The hub's name of a licence, in place of the source data's.
    """
    images, labels, class_names, _, probabilities = finished.images
    save_distilled(folder / SPLIT, images, labels, class_names, probabilities)
    (folder / SPLIT / ARRAYS).rename(folder / ARRAYS)
    captions = [class_names[label] for label in labels[:_PREVIEWED]]
    draw_grid(images[:_PREVIEWED], captions).save(folder / PREVIEW)
    files.write_text(folder / CARD, write_card(finished, source, license))


def upload(folder: Path, repo: str, *, private: bool = False, update: bool = False) -> str:
    """Uploads a folder with all its files to the hub as a data set; returns its address.

    Args:
        private: Whether a new data set is visible to its owner only.
        update: Whether the data set may exist already; a new commit then replaces its files.
    """
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UserError("there is no token for the hub: run `hf auth login`, or set HF_TOKEN")
    hub = huggingface_hub.HfApi()
    with _explaining(repo):
        url = hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=update)
        hub.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Add a distilled data set",
            delete_patterns="*" if update else None,
        )
    return str(url)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.Parser(prog="python -m lgm_jax.share", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument(
        "--to", required=True, help="a new folder, or hub:USER/NAME on the Hugging Face hub"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the card and the files, and write nothing"
    )
    parser.add_argument("--license", help="a licence by the hub's name, for example cc-by-4.0")
    parser.add_argument("--private", action="store_true", help="on the hub, for your eyes only")
    parser.add_argument(
        "--update", action="store_true", help="replace the files of the data set on the hub"
    )
    options = parser.parse_args(argv)
    options.repo, options.folder = None, None
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", options.license):
        raise UserError(
            f"--license must be the hub's name of a licence, for example cc-by-4.0, not "
            f"{options.license!r}"
        )
    if options.to.startswith(_HUB):
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        options.repo = options.to.removeprefix(_HUB)
        try:
            validate_repo_id(options.repo)
        except HFValidationError as error:
            raise UserError(f"--to={options.to} names no data set of the hub: {error}") from error
        if "/" not in options.repo:
            raise UserError(f"--to={options.to} has no owner: give {_HUB}USER/{options.repo}")
        return options
    if options.private or options.update:
        raise UserError("--private and --update are for --to=hub:USER/NAME")
    if "://" in options.to:
        raise UserError(
            f"--to={options.to} is no folder of this machine: name one, and copy it there, or "
            f"{_HUB}USER/NAME"
        )
    options.folder = Path(os.path.expanduser(options.to))
    # Unlike `exists`, it does not raise for names that are too long or folders without permission.
    if os.path.lexists(options.folder):
        raise UserError(f"{options.folder} exists already: name a new folder, or remove it")
    return options


def _describe(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    print((folder / CARD).read_text(encoding="utf-8"))
    for path in paths:
        print(f"{path.stat().st_size:>12,} bytes  {path.relative_to(folder).as_posix()}")
    print(f"{len(paths)} files would be written; nothing was")


@contextlib.contextmanager
def _explaining(repo: str) -> Iterator[None]:
    """Turns the errors of `huggingface_hub` into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError("the hub cannot be reached: HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status, reason = error.response.status_code, explain(error)
        if status == 409:
            raise UserError(
                f"{repo} exists on the hub: add --update to replace its files, or name another"
            ) from error
        if status in (401, 403):
            raise UserError(
                f"the hub does not let you write {repo} ({reason}): its owner must be you, and the "
                "token one that may write; see `hf auth whoami`"
            ) from error
        raise UserError(f"the hub refuses {repo}: {reason}") from error
    # The HTTP library, which differs between versions, raises errors of its own.
    except Exception as error:
        raise UserError(
            f"cannot upload {repo} to the hub: {explain(error)}; repeat the command with --update"
        ) from error


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
