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
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lgm_jax import files, terminal
from lgm_jax.card import CARD, PREVIEW, SPLIT, TERMS, Finished, read_run, write_card
from lgm_jax.distilled import ARRAYS, save_distilled
from lgm_jax.errors import UserError, explain
from lgm_jax.report.grid import draw_grid

__all__ = ["CARD", "TERMS", "Finished", "export", "main", "read_run", "upload", "write_card"]

_HUB = "hub:"

# Images in the preview: more are too small to see.
_PREVIEWED = 100


@terminal.one_line_errors
def main(argv: Sequence[str]) -> int:
    """Shares the run that the command line names; returns the exit code."""
    options = _parse(argv)
    with _exported(options) as folder:
        if options.dry_run:
            _describe(folder)
        elif options.repo:
            url = upload(folder, options.repo, private=options.private, update=options.update)
            print(f"shared: {url}")
    if not options.repo and not options.dry_run:
        print(f"shared: {options.folder}")
    return 0


def export(finished: Finished, folder: Path, source: str, license: str | None = None) -> None:
    """Writes a run's images and their card.

    Args:
        source: The set that the card's examples load: `user/name` on the hub, or a folder's name.
        license: The hub's name of a licence, in place of the source data's.
    """
    images, labels, names, _, probabilities = finished.images
    save_distilled(folder / SPLIT, images, labels, names, probabilities)
    (folder / SPLIT / ARRAYS).rename(folder / ARRAYS)
    captions = [names[label] for label in labels[:_PREVIEWED]]
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
    # Unlike `exists`, it does not raise for names that are too long or folders without permission.
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
    """Writes the data set to its folder, or to one that is removed after the upload."""
    finished = read_run(options.run)
    source = options.repo or options.folder.resolve().name
    lasting = options.folder is not None and not options.dry_run
    parent = options.folder.absolute().parent if lasting else None
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        # Renamed at the end, so that no folder of this name is incomplete.
        with tempfile.TemporaryDirectory(dir=parent, prefix=".share-") as temporary:
            folder = Path(temporary) / "set"
            folder.mkdir()
            export(finished, folder, source, options.license)
            yield folder
            if lasting:
                folder.rename(options.folder)
    except OSError as error:
        raise UserError(f"cannot write {options.to}: {explain(error)}") from error


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
        status, reason = error.response.status_code, _first_line(error)
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
            f"cannot upload {repo} to the hub: {_first_line(error)}; repeat the "
            "command with --update"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
