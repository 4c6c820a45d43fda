"""A backbone's files: in a folder, or on the Hugging Face hub; weights in safetensors only."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgm_jax import stand_ins
from lgm_jax.errors import UserError, list_some

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
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
        preprocessor: Content of `preprocessor_config.json`; empty if there is none.
        weights: The safetensors files.
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

    def __str__(self) -> str:
        return self.origin


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
    """Opens safetensors files without reading more than their headers.

    Raises:
        UserError: If one is not a whole safetensors file.
    """
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
            handles |= dict.fromkeys(handle.keys(), handle)
        yield Tensors(handles)


def check_content(path: Path) -> None:
    """Refuses what lies in the place of a file, by how it begins.

    Raises:
        UserError: If it is empty, a pointer to the file, or a web page; or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(stand_ins.HEAD)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    reason = stand_ins.explain(start)
    if start.startswith(_ZIP):
        reason = "it is a zip archive, perhaps of torch.save, under another file's name"
    if reason:
        raise UserError(f"cannot read {path}: {reason}")


def from_folder(folder: Path) -> Files:
    """The files of a local folder; nothing is downloaded.

    Raises:
        UserError: If a file is missing or not what it should be.
    """
    config_path, whole, index = folder / CONFIG, folder / WEIGHTS, folder / _INDEX
    preprocessor = {}
    if not config_path.is_file():
        hint = "a backbone's folder needs timm's or transformers'"
        if (folder / "snapshots").is_dir():
            hint = "of the hub's cache, give a folder below its snapshots, or owner/name"
        raise UserError(f"{_missing(config_path)}: {hint}")
    config = _read_json(config_path)
    if (folder / PREPROCESSOR).is_file():
        preprocessor = _read_json(folder / PREPROCESSOR)
    # An index beside a whole file is left from when there were several.
    if whole.is_file() or not index.is_file():
        weights = [whole]
        if index.is_file():
            print(f"note: {index} is left out, since {WEIGHTS} is beside it", flush=True)
    else:
        weights = [folder / name for name in _shards(index)]
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
    cached = _CACHED.fullmatch(place.parent.parent.name)
    if cached is not None and place.parent.name == "snapshots":
        origin = f"{cached['owner']}/{cached['name']}"
        return Files(origin, config, preprocessor, weights, place.name)
    return Files(place.name, config, preprocessor, weights)


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

    Args:
        repo: `owner/name`.
        revision: A branch, tag or commit; the main branch by default.
        need_config: Whether `config.json` must be there.

    Raises:
        UserError: If it cannot be reached or read, or holds weights of another kind only.
    """
    with _explaining(repo, revision):
        fetch = functools.partial(_fetch, repo, revision, _refusal(repo, revision))
        # The weights first: what cannot be loaded is said before anything else is fetched.
        weights = _fetch_weights(repo, fetch)
        config = preprocessor = None
        if need_config:
            config, preprocessor = fetch(CONFIG), fetch(PREPROCESSOR, optional=True)
            if config is None:
                raise UserError(f"{repo} on the hub has no {CONFIG}")
    return Files(
        repo,
        _read_json(config) if config else {},
        _read_json(preprocessor) if preprocessor else {},
        weights,
        # The cache keeps a file under snapshots/<commit>/.
        weights[0].parent.name,
    )


def _fetch_weights(repo: str, fetch: Callable[..., Path | None]) -> list[Path]:
    whole = fetch(WEIGHTS, optional=True)
    if whole is not None:
        return [whole]
    index = fetch(_INDEX)
    if index is None:
        raise UserError(
            f"{repo} on the hub has no {WEIGHTS}, and other formats are not read (a pickle "
            f"can run any code): `hf download {repo} --local-dir=FOLDER`, and give FOLDER, "
            "to be told how to convert them"
        )
    weights = []
    for name in _shards(index):
        shard = fetch(name)
        if shard is None:
            raise UserError(f"{repo} on the hub has no {name}, which its index names")
        weights.append(shard)
    return weights


def _fetch(
    repo: str,
    revision: str | None,
    refusal: Exception | None,
    name: str,
    *,
    optional: bool = False,
) -> Path | None:
    """A file, or `None` where the repository has no such file.

    Args:
        repo: As for `from_hub`.
        revision: As for `from_hub`.
        refusal: Why the hub does not hand the repository out; then the cache alone is asked.
        name: The file's.
        optional: Whether there need be none.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            huggingface_hub.hf_hub_download(
                repo, name, revision=revision, local_files_only=refusal is not None
            )
        )
    except LocalEntryNotFoundError:
        if refusal is None:
            raise
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        # What `hf download` has filled holds no record of files that there are none of.
        if optional or cached is huggingface_hub._CACHED_NO_EXIST:
            return None
        # The hub's own words, where it has answered.
        if isinstance(refusal, HfHubHTTPError):
            raise refusal from None
        raise
    except EntryNotFoundError:
        return None


def _refusal(repo: str, revision: str | None) -> Exception | None:
    """Why the hub does not hand a repository out; `None` where it does.

    Asked once: a download waits half a minute for a network that is not there.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo, WEIGHTS, revision=revision)
        )
    except EntryNotFoundError:
        # Left to the download, which records in the cache that there is no such file.
        return None
    except HFValidationError:
        raise
    # Offline, gated, out of order, or what the installed HTTP library raises where nobody answers.
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _explaining(repo: str, revision: str | None) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line that says what to do."""
    from huggingface_hub import errors

    folder = f"or put {CONFIG} and {WEIGHTS} into a folder and give its path"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo} on the hub is gated: accept its terms on its page there, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} on the hub has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo} is neither a folder here nor a repository on the hub that you may read"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a folder nor a name on the hub: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{repo} is not in the cache, and the hub cannot be reached: on a machine with network "
            f"run `hf download {repo}` and copy the cache (HF_HOME), {folder}"
        ) from error
    # Whatever library the installed version speaks HTTP with raises errors of its own.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot download {repo} from the hub: {reason}; try again, {folder}"
        ) from (error)


def _no_safetensors(folder: Path) -> str:
    """Returns advice for a folder without weights."""
    text = f"{_missing(folder / WEIGHTS)}: weights are read from safetensors only"
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if len(others) == 1:
        return f"{text}, and under this name: rename {others[0]} to {WEIGHTS}"
    pickles = [path for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        first = pickles[0]
        shards = first.name.startswith("pytorch_model-")
        read = f"torch.load({str(first)!r}, weights_only=True)"
        if shards:
            several = str(first.with_name("pytorch_model-*.bin"))
            read = (
                f"{{k: v for f in glob.glob({several!r}) "
                "for k, v in torch.load(f, weights_only=True).items()}"
            )
        # The other files, with the statistics, stay beside it, whichever library wrote them.
        text += (
            f", {first.name} is a pickle and can run any code: convert it with `python -c "
            f'"import {"glob, " if shards else ""}torch, safetensors.torch as s; t = {read}; '
            # Training writes weights beside an optimizer's state.
            "t = next((t[k] for k in ('state_dict', 'model', 'teacher') if k in t), t); "
            "s.save_file({k: v.clone().contiguous() for k, v in t.items() if hasattr(v, 'clone')}, "
            f'{str(folder / WEIGHTS)!r})"`'
        )
    return text


def _shards(index: Path) -> list[str]:
    content = _read_json(index).get("weight_map")
    strings = isinstance(content, dict) and all(isinstance(v, str) for v in content.values())
    if not content or not strings:
        raise UserError(f"{index} has no weight_map")
    names = sorted(set(content.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside its folder: {name}")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    check_content(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    # Broken text, broken JSON, and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content
