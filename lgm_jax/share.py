"""A finished run as a data set: `python -m lgm_jax.share RUN --to=hub:USER/NAME` or `--to=FOLDER`.

What is written, and uploaded, is

    README.md             the data set card
    train/0_zero/000.png  the images, one folder per class
    train/metadata.jsonl  label and class name of each
    distilled.npz         the unrounded values
    preview.png           the images in one picture

which `lgm_jax.load_distilled`, the Hugging Face library `datasets`, TFDS's `ImageFolder`, and for
`train/` torchvision's load as it is. No real image is among it.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from lgm_jax import files, names, objectives, public, runs, terminal
from lgm_jax.class_folders import METADATA
from lgm_jax.distilled import ARRAYS, DistilledSet, read_distilled, save_distilled
from lgm_jax.errors import UserError
from lgm_jax.report.grid import draw_grid
from lgm_jax.report.judge import judge
from lgm_jax.report.table import TITLES

CARD, PREVIEW, SPLIT = "README.md", "preview.png", "train"

_HUB = "hub:"

# Images in the preview: more are too small to see.
_PREVIEWED = 100

# The hub's words for the number of images.
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))

_ROWS = {**TITLES, "distilled": "**the images of this set**"}


class Terms(NamedTuple):
    """Terms of a data set that images are made from.

    Attributes:
        license: The hub's name for them.
        name: What they are called, where the hub has no name for them.
        link: Where they stand.
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

_UNKNOWN = Terms("unknown", None, None, "These terms are not known to the program that made this.")


class Finished(NamedTuple):
    """What a finished run holds.

    Attributes:
        images: The distilled set.
        results: `results.json`.
        record: Of the distillation, in `stages.json`: `inputs` and `made_by`.
        settings: Of the run, by config key, as others may see them.
    """

    images: DistilledSet
    results: Mapping[str, Any]
    record: Mapping[str, Any]
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def data_name(self) -> str | None:
        """`data.name`, which version 0.1 recorded with the distillation."""
        return self.settings.get("data.name", self.record["inputs"].get("data.name"))


def main(argv: Sequence[str]) -> int:
    """Exports what the command line names; bad input is one line and exit code 2."""
    try:
        options = _parse(argv)
        with _exported(options) as folder:
            if options.dry_run:
                _describe(folder)
            elif options.repo:
                url = upload(folder, options.repo, private=options.private, update=options.update)
                print(f"shared: {url}")
        if not options.repo and not options.dry_run:
            print(f"shared: {options.folder}")
    except UserError as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    return 0


def read_run(workdir: str | Path) -> Finished:
    """Reads a run that is finished.

    Raises:
        UserError: If the folder is none of a run, if the run is not finished, or if it made no
            images of its own.
    """
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
    return Finished(read_distilled(str(path)), results, record, settings)


def export(finished: Finished, folder: Path, source: str, license: str | None = None) -> None:
    """Writes a run's images and their card.

    Args:
        finished: The run.
        folder: Where to; made if need be.
        source: What the card's examples load: `user/name` on the hub, or a folder's name.
        license: The hub's name of a licence, instead of that of the source data.
    """
    found = finished.images
    save_distilled(
        folder / SPLIT, found.images, found.labels, found.class_names, found.probabilities
    )
    (folder / SPLIT / ARRAYS).rename(folder / ARRAYS)
    shown = found.images[:_PREVIEWED]
    above = [found.class_names[label] for label in found.labels[:_PREVIEWED]]
    draw_grid(shown, above).save(folder / PREVIEW)
    files.write_text(folder / CARD, write_card(finished, source, license))


def write_card(finished: Finished, source: str, license: str | None = None) -> str:
    """The data set card: front matter that the hub reads, and Markdown.

    Args:
        finished: The run.
        source: `user/name` on the hub, or a folder's name.
        license: The hub's name of a licence, instead of that of the source data.
    """
    terms = TERMS.get(str(finished.data_name), _UNKNOWN)
    sections = [
        f"---\n{_front_matter(finished, source, terms, license)}\n---",
        f"# {_escape(_title(source))}",
        _summary(finished),
        f"![The images, each above the name of its class]({PREVIEW})",
        "## How good they are",
        _accuracies(finished.results),
        *(f"**{found.title}**: {_escape(found.text)}" for found in judge(finished.results)),
        "## How to use them",
        _usage(finished, source),
        "## Licence",
        _licence_note(finished, terms, license),
        "## Where they are from",
        _provenance(finished),
    ]
    return "\n\n".join(sections) + "\n"


def upload(folder: Path, repo: str, *, private: bool = False, update: bool = False) -> str:
    """Uploads a folder to the Hugging Face hub as a data set.

    Args:
        folder: What to upload, all of it.
        repo: `user/name`.
        private: Whether only the owner sees it, if it is new.
        update: Whether it may exist already; what it holds is then replaced by a new commit.

    Returns:
        Its address.

    Raises:
        UserError: If there is no token or no network, or the hub refuses.
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m lgm_jax.share --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m lgm_jax.share", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument(
        "--to", required=True, help="a folder to be made, or hub:USER/NAME on the Hugging Face hub"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the card and the files, and write nothing"
    )
    parser.add_argument("--license", help="a licence by the hub's name, for example cc-by-4.0")
    parser.add_argument("--private", action="store_true", help="on the hub, for your eyes only")
    parser.add_argument(
        "--update", action="store_true", help="replace what the data set on the hub holds"
    )
    options = parser.parse_args(argv)
    options.repo, options.folder = None, None
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", options.license):
        raise UserError(
            f"--license must be the hub's name of one, for example cc-by-4.0, not "
            f"{options.license!r}"
        )
    if options.to.startswith(_HUB):
        options.repo = _check_repo(options.to.removeprefix(_HUB))
        return options
    if options.private or options.update:
        raise UserError("--private and --update are for --to=hub:USER/NAME")
    if "://" in options.to:
        raise UserError(
            f"--to={options.to} is no folder of this machine: name one, and copy it there, or "
            f"{_HUB}USER/NAME"
        )
    options.folder = Path(os.path.expanduser(options.to))
    # Never raises, of a folder that nobody may look at or whose name is too long.
    if os.path.lexists(options.folder):
        raise UserError(f"{options.folder} exists already: name a new folder, or remove it")
    return options


def _check_repo(repo: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--to={_HUB}{repo} names no data set of the hub: {error}") from error
    if "/" not in repo:
        raise UserError(f"--to={_HUB}{repo} has no owner: give {_HUB}USER/{repo}")
    return repo


@contextlib.contextmanager
def _exported(options: argparse.Namespace) -> Iterator[Path]:
    """What a command line asks for, in its folder or for as long as it takes to upload it."""
    finished = read_run(options.run)
    source = options.repo or options.folder.resolve().name
    lasting = options.folder is not None and not options.dry_run
    parent = options.folder.absolute().parent if lasting else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        # A folder that is there is a whole one.
        with tempfile.TemporaryDirectory(dir=parent, prefix=".share-") as temporary:
            folder = Path(temporary) / "set"
            folder.mkdir()
            export(finished, folder, source, options.license)
            yield folder
            if lasting:
                folder.rename(options.folder)
    except OSError as error:
        raise UserError(f"cannot write {options.to}: {error.strerror or error}") from error


def _describe(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    print((folder / CARD).read_text(encoding="utf-8"))
    for path in files:
        print(f"{path.stat().st_size:>12,} bytes  {path.relative_to(folder).as_posix()}")
    print(f"{len(files)} files would be written; nothing was")


@contextlib.contextmanager
def _explaining(repo: str) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError("the hub cannot be reached: HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status, reason = error.response.status_code, _first_line(error)
        if status == 409:
            raise UserError(
                f"{repo} exists on the hub: add --update to replace what it holds, or name another"
            ) from error
        if status in (401, 403):
            raise UserError(
                f"the hub does not let you write {repo} ({reason}): its owner must be you, and the "
                "token one that may write; see `hf auth whoami`"
            ) from error
        raise UserError(f"the hub refuses {repo}: {reason}") from error
    # Whatever library the installed version speaks HTTP with raises errors of its own.
    except Exception as error:
        raise UserError(
            f"cannot upload {repo} to the hub: {_first_line(error)}; with --update the same "
            "command goes on"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


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


def _summary(finished: Finished) -> str:
    images, results = finished.images, finished.results
    count, height, width, _ = images.images.shape
    backbones = " and ".join(map(_escape, results["backbones"]))
    text = (
        f"{count} synthetic images of {height} x {width} px, {results['ipc']} for each of "
        f"{results['num_classes']} classes of {_escape(results['dataset'])}, distilled for the "
        f"frozen vision model {backbones}: a linear classifier that is trained on its features of "
        "these few images is to come close to one trained on all. Made with lgm_jax, by "
        f"{_method(results)}."
    )
    if images.probabilities is not None:
        text += (
            f" Each image has a probability of every class beside its label: `probabilities` in "
            f"`{ARRAYS}`."
        )
    return text


def _method(results: Mapping[str, Any]) -> str:
    name = str(results["objective"])
    about = results.get("about_objective")
    if about is None:
        # Of an earlier version, which had ours alone.
        ours = objectives.OBJECTIVES.get(name)
        about = {"title": name} if ours is None else objectives.about(ours)
    number = re.fullmatch(r"arXiv (\d+\.\d+)", about.get("source", ""))
    where = _escape(about.get("source", ""))
    if number:
        where = f"[arXiv {number[1]}](https://arxiv.org/abs/{number[1]})"
    return f"{_escape(about['title'])} (objective `{name}`{where and f', {where}'})"


def _accuracies(results: Mapping[str, Any]) -> str:
    table = results["probe"]
    if not table:
        return "No probes were trained."
    splits = sorted({entry["split"] for rows in table.values() for entry in rows.values()})
    lines = [
        f"Top-1 accuracy in percent on {' and '.join(splits)} images, of linear classifiers that "
        f"are trained on features of the images named on the left, {results['ipc']} per class but "
        "for the full set; mean and standard deviation over repetitions.",
        "",
        "| trained on | " + " | ".join(map(_escape, table)) + " |",
        "|---" * (1 + len(table)) + "|",
    ]
    for method, title in _ROWS.items():
        if any(method in rows for rows in table.values()):
            cells = [_cell(rows.get(method)) for rows in table.values()]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    std = entry["top1_std"]
    return f"{entry['top1_mean']:.1f}" + ("" if std is None else f" ± {std:.1f}")


def _usage(finished: Finished, source: str) -> str:
    """Examples that run as they stand, in the folder that holds the set if it is not on the hub."""
    place = json.dumps(source)
    if "/" in source:
        fetch = "from huggingface_hub import snapshot_download\n\n"
        folder = f'snapshot_download({place}, repo_type="dataset")'
    else:
        fetch, folder = "", place
    backbone = next(iter(finished.results["backbones"]))
    return f"""\
Values are within [0, 1] and **not normalised**: normalise once, as the model asks for. The PNGs are
rounded to 8 bits; `{ARRAYS}` has the float32 values.

JAX, with `lgm_jax`, whose backbones normalise by themselves:

```python
{fetch}import lgm_jax

images, labels, class_names = lgm_jax.load_distilled({folder})
```

`--config.images.source=FOLDER` evaluates them, for example against {_escape(backbone)}.

PyTorch (or torchvision's `ImageFolder` on `{SPLIT}/`):

```python
{fetch}import numpy as np
import torch

arrays = np.load({folder} + "/{ARRAYS}")
images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2)
labels = torch.tensor(arrays["labels"]).long()
```

Hugging Face `datasets`:

```python
from datasets import load_dataset

dataset = load_dataset({place}, split="{SPLIT}")
image, label = dataset[0]["image"], dataset[0]["label"]
```

TFDS: `tensorflow_datasets.ImageFolder(FOLDER).as_dataset("{SPLIT}")`."""


def _licence_note(finished: Finished, terms: Terms, license: str | None) -> str:
    dataset = _escape(finished.results["dataset"])
    text = (
        f"The images are synthetic, but made from {dataset} and able to show what its images "
        f"show: its terms apply as far as they extend to what is derived from it. {terms.note}"
    )
    if license:
        text += f" Who published this set chose the licence {_escape(license)} for it."
    return text


def _provenance(finished: Finished) -> str:
    settings = {name: value for name, value in finished.settings.items() if value is not None}
    classes = "\n".join(
        f"- {label}: {_escape(name)}" for label, name in enumerate(finished.images.class_names)
    )
    return "\n\n".join(
        [
            "Settings, hashes of data and weights, and the programs that made the images:",
            f"<details><summary>Settings</summary>\n\n{_code(settings)}\n\n</details>",
            f"<details><summary>What makes these images these and no others</summary>\n\n"
            f"{_code(finished.record['inputs'])}\n\n</details>",
            f"<details><summary>Made by</summary>\n\n{_code(finished.record['made_by'])}\n\n"
            "</details>",
            f"<details><summary>Classes</summary>\n\n{classes}\n\n</details>",
        ]
    )


def _code(value: Any) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    # A fence that is longer than any in the text.
    fence = "`" * max([2, *map(len, re.findall("`+", text))]) + "`"
    return f"{fence}json\n{text}\n{fence}"


def _escape(text: str) -> str:
    """Text from data as one line of Markdown that shows it as it is, in a table too."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
