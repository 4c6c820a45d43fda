"""A backbone's files: in a folder, or on the Hugging Face hub; weights in safetensors only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgm_jax import stand_ins
from lgm_jax.errors import UserError, list_some

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
# Where transformers 5 writes the parts of a processor, and looks first.
_PROCESSOR = "processor_config.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = (
    *("pytorch_model.bin", "pytorch_model-*.bin", "model.bin"),
    *("*.pth", "*.pt", "*.pkl", "*.ckpt", "*.pth.tar"),
)

_ZIP = b"PK\x03\x04"
# The hub's cache has a repository `owner/name` in `models--owner--name/snapshots/<commit>`.
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a backbone.

    Attributes:
        origin: The folder's base name, or the hub's repository, of a folder of its cache too.
        config: Content of `config.json`; empty where a table's entry takes its place.
        preprocessor: Content of `preprocessor_config.json`, or of this part of
            `processor_config.json`; empty if there is neither.
        revision: The hub's commit, if it is from there.
    """

    origin: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    weights: Sequence[Path]
    revision: str | None = None

    def sha256(self) -> dict[str, str]:
        """Hash of each weights file, by name."""
        hashes = {}
        for path in self.weights:
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of some safetensors files, each read and checked when it is asked for."""

    def __init__(self, handles: Mapping[str, Any]):
        self._handles = handles

    def __getitem__(self, key: str) -> np.ndarray:
        handle = self._handles[key]
        kind = handle.get_slice(key).get_dtype()
        if kind not in _FLOATS:
            raise UserError(f"the weights' {key} is {kind}: only {', '.join(_FLOATS)} are read")
        tensor = handle.get_tensor(key)
        # Nothing wider than float32 is computed in: what overflows there is no number either.
        with np.errstate(over="ignore"):
            finite = np.isfinite(tensor if kind != "F64" else tensor.astype(np.float32)).all()
        if not finite:
            raise UserError(
                f"the weights' {key} has NaN or infinite numbers: the file is damaged or training "
                "diverged; download it again, or take an earlier checkpoint"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


@contextlib.contextmanager
def open_tensors(paths: Sequence[Path]) -> Iterator[Tensors]:
    """Opens whole safetensors files without reading more than their headers."""
    import safetensors

    with contextlib.ExitStack() as stack:
        handles: dict[str, Any] = {}
        for path in paths:
            check_content(path)
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"{path} is truncated or not a safetensors file: {error}"
                ) from error
            if twice := sorted(handles.keys() & set(handle.keys())):
                raise UserError(
                    f"{path} has tensors of another file of its index: {list_some(twice)}"
                )
            handles |= dict.fromkeys(handle.keys(), handle)
        yield Tensors(handles)


def check_content(path: Path) -> None:
    """Refuses an empty file, a pointer to one, or a web page, by how it begins."""
    with path.open("rb") as file:
        start = file.read(stand_ins.HEAD)
    reason = stand_ins.explain(start)
    if start.startswith(_ZIP):
        reason = "it is a zip archive, perhaps of torch.save, under another file's name"
    if reason:
        raise UserError(f"cannot read {path}: {reason}")


def from_folder(folder: Path, *, need_config: bool = True) -> Files:
    """The files of a local folder; nothing is downloaded."""
    if need_config and not (folder / CONFIG).is_file():
        hint = "a backbone's folder needs timm's or transformers'"
        if (folder / "snapshots").is_dir():
            hint = "of the hub's cache, give a folder below its snapshots, or owner/name"
        raise UserError(f"{_missing(folder / CONFIG)}: {hint}")
    config, preprocessor, processor = (
        _read_json(folder / name) if need_config and (folder / name).is_file() else {}
        for name in (CONFIG, PREPROCESSOR, _PROCESSOR)
    )
    if isinstance(nested := processor.get("image_processor"), dict):
        preprocessor = nested
    whole, index = folder / WEIGHTS, folder / _INDEX
    # An index beside a whole file is left from when there were several.
    shards = _shards(index) if index.is_file() and not whole.is_file() else [WEIGHTS]
    weights = [folder / name for name in shards]
    missing = [path for path in weights if not path.is_file()]
    if missing == [whole]:
        raise UserError(_no_safetensors(folder))
    if missing:
        names = list_some([path.name for path in missing])
        raise UserError(
            f"{_missing(missing[0])}: of the {len(weights)} files that {index.name} names, "
            f"{len(missing)} lacking ({names}); download or copy them too"
        )
    # As it was named: a link may lead to a folder whose name says nothing.
    place = Path(os.path.abspath(folder))
    origin, revision = place.name, None
    cached = _CACHED.fullmatch(place.parent.parent.name)
    if cached is not None and place.parent.name == "snapshots":
        origin, revision = f"{cached['owner']}/{cached['name']}", place.name
    return Files(origin, config, preprocessor, weights, revision)


def _missing(path: Path) -> str:
    """That a folder lacks a file, or that a link in its place leads nowhere."""
    if path.is_symlink():
        target = os.readlink(path)
        content = "; run `git annex get` there" if "annex/objects" in target else ""
        return f"{path} is a link to {target}, which is not there{content}"
    return f"{path.parent} has no {path.name}"


def from_hub(repo: str, revision: str | None = None, *, need_config: bool = True) -> Files:
    """The files of a repository of the Hugging Face hub: from the cache, or downloaded into it.

    A progress bar, the cache's place, offline mode and tokens are `huggingface_hub`'s. Where the
    hub does not hand a repository out, for whatever reason, what the cache holds of it is used.
    """
    from huggingface_hub import snapshot_download

    def fetch(wanted: Sequence[str]) -> Path:
        try:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=[*wanted]))
        # Whatever library the installed version speaks HTTP with raises errors of its own.
        except Exception as error:
            raise UserError(_explain(error, repo, revision)) from error

    folder = fetch([WEIGHTS, _INDEX, *((CONFIG, PREPROCESSOR, _PROCESSOR) if need_config else ())])
    whole, index = folder / WEIGHTS, folder / _INDEX
    if not whole.exists() and not index.exists():
        raise UserError(
            f"{repo} has no {WEIGHTS} on the hub or in its cache, and other formats are not "
            f"read (a pickle can run any code): `hf download {repo} --local-dir=FOLDER`, and "
            "give FOLDER, to be told how to convert them"
        )
    if need_config and not (folder / CONFIG).exists():
        raise UserError(f"{repo} has no {CONFIG} on the hub or in its cache")
    if not whole.exists():
        fetch(_shards(index))
    return from_folder(folder, need_config=need_config)


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """Says in a line what `huggingface_hub` raised, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} on the hub is gated: accept its terms on its page there, then `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} on the hub has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repo} is neither a folder here nor a repository on the hub that you may read"
    folder = f"or put {CONFIG} and {WEIGHTS} into a folder and give its path"
    # Behind an error of the cache may be the hub's answer.
    answer = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    if answer is not error and not isinstance(answer, errors.HfHubHTTPError):
        return (
            f"{repo} is not in the cache, and the hub cannot be reached: on a machine with "
            f"network run `hf download {repo}` and copy the cache (HF_HOME), {folder}"
        )
    reason = str(answer).strip().split("\n")[0] or type(answer).__name__
    return f"cannot download {repo} from the hub: {reason}; try again, {folder}"


def _no_safetensors(folder: Path) -> str:
    """Returns advice for a folder without weights."""
    text = f"{_missing(folder / WEIGHTS)}: weights are read from safetensors only"
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if len(others) == 1:
        return f"{text}, and under this name: rename {others[0]} to {WEIGHTS}"
    pickles = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    if not pickles:
        return text
    # All parts of a model, or the first file.
    pattern = re.sub(r"^pytorch_model-.*", "pytorch_model-*.bin", pickles[0])
    # The other files, with the statistics, stay beside it, whichever library wrote them. Training
    # writes weights beside an optimizer's state.
    return (
        f"{text}, {pickles[0]} is a pickle and can run any code: convert it with `python -c "
        f'"import pathlib, torch, safetensors.torch as s; '
        f"t = {{k: v for f in pathlib.Path({str(folder)!r}).glob({pattern!r}) "
        "for k, v in torch.load(f, weights_only=True).items()}; "
        "t = next((t[k] for k in ('state_dict', 'model', 'teacher') if k in t), t); "
        "s.save_file({k: v.clone().contiguous() for k, v in t.items() if hasattr(v, 'clone')}, "
        f'{str(folder / WEIGHTS)!r})"`'
    )


def _shards(index: Path) -> list[str]:
    """Names of the files of weights that an index lists."""
    content = _read_json(index).get("weight_map")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{index} has no weight_map")
    names = sorted(set(map(str, content.values())))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside its folder: {name}")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    check_content(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    # Broken text, broken JSON, and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content
